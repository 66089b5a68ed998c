"""A policy in imagined episodes: with a perfect model they are the rest of the real ones."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite, Unbounded

from mbrl.collecting.acting import Acting
from mbrl.collecting.evaluation import Evaluator
from mbrl.collecting.imagining import imagination_env, imagine, play_imagined
from mbrl.envs.simulator_model import SimulatorModel
from mbrl.envs.toy import make_env
from mbrl.prediction.policies import history
from policies.base import Policy
from tests.agents.test_planning import TOY, ToyWorldModel, planning
from tests.agents.test_terminations import Ending

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
    acting = Acting(policy, evaluator.env.observation_spec)
    rewards = play_imagined(imagined, acting, played.memory, 0, partial(steps.append, 1))
    assert torch.equal(rewards, played.reward[:, context - 1 :]) and rewards.std() > 0.1
    assert steps == [0] * LENGTH + [1] * horizon
    assert played.lengths.tolist() == [LENGTH] * EPISODES
    evaluator.close()


def test_rollouts_of_a_policy_with_memory_go_on_when_one_of_them_terminates() -> None:
    env, model = make_env(resolution=16), Ending()  # a frame is its predecessor plus one; its multiples of 4 terminate
    levels = torch.tensor([10, 11, 12, 13], dtype=torch.uint8)
    pixels = levels.view(4, 1, 1, 1, 1).expand(4, 3, 3, 16, 16).clone()
    starts = TensorDict(pixels=pixels, action=torch.zeros(4, 3, 2), batch_size=[4, 3])
    rollout = imagine(model, Acting(WanderingPolicy(), env.observation_spec), env, starts, 4, 6)
    shown, after = rollout["next", "pixels"][..., 0, 0, 0].long(), rollout["next"]
    assert torch.equal(shown, levels[:, None] + torch.arange(1, 7))
    ended = (shown % 4 == 0).cumsum(1) > 0
    assert torch.equal(after["terminated"].squeeze(-1), ended)
    assert not after["truncated"][:, :-1].any() and after["truncated"][:, -1].all()
    assert (after["reward"].squeeze(-1)[:, 1:] == (~ended[:, :-1]).float()).all(), "1 a step up to the end, then 0"
    with pytest.raises(RuntimeError, match="reset in part"):
        imagination_env(model, env, starts, 4, 6).reset(TensorDict(_reset=levels[:, None] > 11, batch_size=[4]))


def test_a_planner_that_takes_over_knows_the_first_frame_and_the_actions_between_the_newest() -> None:
    model, env = ToyWorldModel(), make_env(**TOY)
    model.context_keys = ("initial",)
    policy, taken = planning(model, numbers={"iterations": 1}), torch.rand(1, 3, 2) * 2 - 1
    pixels = env.rollout(4)["pixels"][None]
    first = pixels[:, :1].expand(1, 3, -1, -1, -1)
    starts = TensorDict(pixels=pixels[:, 1:], action=taken, initial=first, batch_size=[1, 3])
    model.contexts.clear()
    imagine(model, Acting(policy, env.observation_spec), env, starts, 1, 1)
    context = model.contexts[-1]  # of the plan
    assert len(model.contexts) == 2 and torch.equal(context["pixels"], pixels[:, 2:])
    assert torch.equal(context["initial"], first[:, :2]) and torch.equal(context["action"][:, 0], taken[:, 1])
