"""The actor of dreamer_ivideogpt, at its settings and schedule, on rewards whose answer is known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.actor_critic import ActorCritic

FEATURES, ACTIONS, UPDATES = 8, 4, 250
ELSEWHERE = ("_target_", "observation", "encoder_channels", "encoder_strides", "replay_value_weight", "replay_rows")


def agent_settings() -> Any:
    with initialize_config_module("configs", version_base="1.3"):
        return compose("train", ["agent=dreamer_ivideogpt", "agent.policy.gamma=0.95"]).agent


def make(settings: Any) -> ActorCritic:
    """The agent's actor-critic, reading a vector in place of frames, without real steps."""
    chosen = {name: value for name, value in settings.policy.items() if name not in ELSEWHERE}
    specs = Composite(state=Unbounded((FEATURES,))), Bounded(-1.0, 1.0, (ACTIONS,))
    return ActorCritic(*specs, observation="state", **chosen)


def imagine(policy: ActorCritic, settings: Any, reward: Callable[[Tensor], Tensor]) -> TensorDict:
    """Rollouts [B, H + 1] through independent states, with rewards of the actions alone."""
    shape = [settings.imagination.rollouts, settings.imagination.horizon + 1]
    rollouts = TensorDict(state=torch.randn(*shape, FEATURES), batch_size=shape)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        policy.actor(rollouts)
    earned = reward(rollouts["action"])
    rollouts["next"] = TensorDict(
        reward=earned, terminated=torch.zeros_like(earned, dtype=torch.bool), batch_size=shape
    )
    return rollouts


def train(reward: Callable[[Tensor], Tensor]) -> tuple[ActorCritic, float]:
    """The policy after its updates, and the standard deviation that it began with."""
    torch.manual_seed(0)
    settings = agent_settings()
    policy, updates_per_call = make(settings), settings.updates_per_step * settings.imagine_every
    began, rollouts, calls = std(policy), imagine(policy, settings, reward), 1
    for update in range(UPDATES):
        if update >= calls * updates_per_call:
            rollouts, calls = imagine(policy, settings, reward), calls + 1
        policy.update(rollouts[torch.randperm(len(rollouts))[: settings.batch_size]])
    return policy, began


@torch.no_grad()
def std(policy: ActorCritic) -> float:
    return policy.actor.distribution(torch.randn(1000, FEATURES)).scale.mean().item()


@pytest.mark.learns
@pytest.mark.slow  # 4 s; the action that is rewarded is found at the same settings in each run of the suite
def test_without_a_signal_the_actor_goes_on_exploring() -> None:
    policy, began = train(lambda action: torch.full_like(action[..., :1], 1.2))
    assert std(policy) >= 0.92 * began


@pytest.mark.learns
def test_the_action_that_is_rewarded_is_found() -> None:
    policy, _ = train(lambda action: 1.2 + 0.3 * action[..., :1])
    with torch.no_grad():
        best = policy.actor.distribution(torch.randn(1000, FEATURES)).loc.mean(0)
    assert best[0] > 0.98 and best[1:].abs().max() < 0.8, best


def test_a_rollout_is_used_twice_at_most_in_the_mean() -> None:
    settings = agent_settings()
    drawn = settings.updates_per_step * settings.imagine_every * settings.batch_size
    assert drawn <= 2 * settings.imagination.rollouts * settings.imagination.retain
