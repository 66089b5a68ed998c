"""Functions that configurations may call: `${discount:${env}}`, `${case:...}`, `${time_limit:...}`."""

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from omegaconf import OmegaConf


def discount(env: Mapping[str, Any]) -> float:
    """The discount of one agent step by TD-MPC2's rule (Hansen et al. 2024, arXiv 2310.16828): 1 - 5 / T.

    It is at least 0.95 and at most 0.995. The configurations call it as `${discount:${env}}`.

    Args:
        env: settings of the environment; T is `episode_length` in agent steps of `action_repeat` env steps each.
    """
    agent_steps = env["episode_length"] / env.get("action_repeat", 1)
    return float(min(max(1 - 5 / agent_steps, 0.95), 0.995))


def case(value: Any, cases: Mapping[Any, Any], otherwise: Any) -> Any:
    """The entry of `value` in `cases`, or `otherwise`; in configurations `${case:${env.task},{hammer:1},2}`."""
    return cases.get(value, otherwise)


def time_limit(env_id: Any, action_repeat: Any) -> int:
    """The registered env steps of an episode of a Gymnasium environment, or 1000; rounded to whole agent steps."""
    (module, _, name), limit = str(env_id).rpartition(":"), None
    with suppress(Exception):  # The environment cannot be made then, and making it says why.
        _ = import_module(module) if module else None
        limit = import_module("gymnasium").spec(name).max_episode_steps
    return max(int(limit or 1000) // action_repeat, 1) * action_repeat


def register() -> None:
    """Make the functions known to OmegaConf under their names."""
    OmegaConf.register_new_resolver("discount", discount, replace=True)
    OmegaConf.register_new_resolver("time_limit", time_limit, replace=True)
    OmegaConf.register_new_resolver("case", case, replace=True)
