"""The configuration files, which Hydra reads as the package `configs`, and the function that they call."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf


def discount(env: Mapping[str, Any]) -> float:
    """The discount of one agent step by TD-MPC2's rule (Hansen et al. 2024, arXiv 2310.16828): 1 - 5 / T.

    It is at least 0.95 and at most 0.995.

    Args:
        env: settings of the environment; T is `episode_length` in agent steps of `action_repeat` env steps each.
    """
    agent_steps = env["episode_length"] / env.get("action_repeat", 1)
    return float(min(max(1 - 5 / agent_steps, 0.95), 0.995))


OmegaConf.register_new_resolver("discount", discount, replace=True)
