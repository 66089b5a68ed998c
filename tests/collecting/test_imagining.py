"""A policy in imagined episodes: with a perfect model they are the rest of the real ones."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite, Unbounded

from mbrl.collecting.evaluation import Evaluator
from mbrl.collecting.imagining import imagination_env, play_imagined
from mbrl.envs.simulator_model import SimulatorModel
from mbrl.envs.toy import make_env
from mbrl.prediction.policies import history
from policies.base import Policy

LENGTH, EPISODES = 12, 3


class Wanderer(TensorDictModuleBase):
    """Acts on the brightness of each frame of its stack, and differently at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["frames", "steps", "is_init"], ["action", ("next", "steps")]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        steps = tensordict["steps"]
        assert torch.equal(tensordict["is_init"], steps == 0)
        by_frame = tensordict["frames"].float().unflatten(-3, (3, 3)).mean((-3, -2, -1))
        by_column = tensordict["frames"].float()[..., -3:, :, :8].mean((-3, -2, -1))
        action = torch.stack([by_frame[..., 0] - by_frame[..., 1] - 0.5, by_column / 255 - steps[..., 0] / 10], -1)
        return tensordict.set("action", action.clamp(-1, 1)).set(("next", "steps"), steps + 1)


class WanderingPolicy(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.actor, self.carried = Wanderer(), Composite(steps=Unbounded((1,)))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("context", [1, 2, 4])
def test_with_a_perfect_model_an_imagined_episode_is_the_rest_of_the_real_one(context: int) -> None:
    """Whatever the policy remembers, and whether the frame stack is longer or shorter than the model's context."""
    make = partial(make_env, resolution=16, episode_length=LENGTH, snapshots=True)
    evaluator, policy = Evaluator(make, episodes=EPISODES, max_steps=LENGTH, seed=3), WanderingPolicy()
    model = SimulatorModel(evaluator.env.observation_spec, evaluator.env.action_spec, env=make(seed=0))
    model.context_length = context
    steps: list[int] = []
    played = evaluator.play_together(policy, range(EPISODES), partial(steps.append, 0), opening=context)
    assert played.opening is not None and played.opening.batch_size == (EPISODES, context)
    horizon = LENGTH - context + 1
    imagined = imagination_env(model, evaluator.env, partial(history, played.opening), EPISODES, horizon)
    rewards = play_imagined(imagined, policy, played.memory, 0, partial(steps.append, 1))
    assert torch.equal(rewards, played.reward[:, context - 1 :]) and rewards.std() > 0.1
    assert steps == [0] * LENGTH + [1] * horizon
    assert played.lengths.tolist() == [LENGTH] * EPISODES
    evaluator.close()
