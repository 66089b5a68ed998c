"""The value behind the last step of a plan: known answers, and a plan of one step that it steers."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.agents.plan_imagination import PlanImagination
from mbrl.errors import UserError
from policies.base import Policy
from tests.agents.test_planning import SIDE, ToyWorldModel, planning
from tests.fakes import SIZE, BrightnessPolicy, CountingWorldModel


class Moved(CountingWorldModel):
    """A frame is its predecessor plus the action's first entry, which is also the reward."""

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        pixels = state + action[:, :1, None, None].to(torch.uint8)
        return pixels, TensorDict(pixels=pixels, reward=action[:, :1], batch_size=[len(action)])


class Ending(Moved):
    """A rollout has terminated once its frame shows 95 or more."""

    predicts_termination = True

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        pixels, prediction = super().step(state, action)
        return pixels, prediction.set("terminated", pixels[:, 0, 0, :1] >= 95)


class Valued(BrightnessPolicy):
    """Acts on the brightness of the newest frame. Value: oldest frame + 2 * the middle one + 255 * action."""

    def values(self, observed: TensorDictBase, action: Tensor) -> Tensor:
        frames = observed["frames"][:, ::3, 0, 0].float()
        return (frames[:, 0] + 2 * frames[:, 1] + 255 * action[:, 0])[:, None]


def scores(model: CountingWorldModel, plans: list[list[list[float]]], samples: int = 1) -> Tensor:
    """Scores [2, N] of plans [2, N, H] of the first entry of actions, after the frames 10, 20, 30 and 60, 70, 80."""
    shades = torch.tensor([[10, 20, 30], [60, 70, 80]], dtype=torch.uint8)
    frames = shades.repeat_interleave(3, 1)[..., None, None].expand(-1, -1, SIZE, SIZE)
    imagination = PlanImagination(model, None, Valued(), 0.5, samples, None)
    observed = TensorDict(frames=frames, batch_size=[2])
    return imagination.scorer(frames[:, -3:], observed)(torch.tensor(plans)[..., None].expand(-1, -1, -1, 2))


PLANS = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]


@pytest.mark.parametrize("samples", [1, 3])
def test_the_value_of_the_last_frames_is_discounted_by_the_horizon(samples: int) -> None:
    """The last frames are 30, 31, 33 · 30, 33, 37 · 80, 85, 91 · 80, 87, 95; their values 125 · 133 · 341 · 349."""
    expected = [[1 + 0.5 * 2 + 0.25 * 125, 3 + 0.5 * 4 + 0.25 * 133], [5 + 3 + 0.25 * 341, 7 + 4 + 0.25 * 349]]
    torch.testing.assert_close(scores(Moved(), PLANS, samples), torch.tensor(expected))


def test_a_plan_longer_than_the_stack_ends_with_imagined_frames_alone() -> None:
    """The last frames are 32, 33, 34 and 86, 89, 92; their values 132 and 356."""
    expected = [[1.875 + 132 / 16], [3 * 1.875 + 356 / 16]]
    torch.testing.assert_close(scores(Moved(), [[[1.0] * 4], [[3.0] * 4]]), torch.tensor(expected))


def test_nothing_is_to_be_had_after_a_termination() -> None:
    """The last plan ends with the frame 95."""
    assert scores(Ending(), PLANS)[1].tolist() == pytest.approx([5 + 3 + 0.25 * 341, 7 + 4])


class Unrewarded(ToyWorldModel):
    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, TensorDict]:
        after, prediction = super().step(state, action)
        return after, prediction.set("reward", torch.zeros(len(state), 1))


class Towards(BrightnessPolicy):
    """Values the column of the white square, times `sign`."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def values(self, observed: TensorDictBase, action: Tensor) -> Tensor:
        white = (observed["frames"][:, -1] == 255).float()
        columns = (white * torch.arange(SIDE)).sum((1, 2)) / white.sum((1, 2)).clamp(min=1)
        return self.sign * columns[:, None]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_plan_of_one_step_goes_where_the_value_is(sign: float) -> None:
    torch.manual_seed(0)
    policy = planning(Unrewarded(), Towards(sign), numbers={"horizon": 1}, terminal_value=True)
    rows = torch.cat([policy.actor.blank()] * 4)
    rows["frames"][:, :, 7:9, 7:9] = 255
    plan = policy.actor.plan(rows)
    assert (sign * plan.mean[:, 0, 0] > 0.5).all()


@pytest.mark.parametrize("prior", [None, BrightnessPolicy()])
def test_a_prior_without_values_is_refused(prior: Policy | None) -> None:
    with pytest.raises(UserError, match=r"has Q-functions, and \w+ has none: give \+policy@agent\.policy=drqv2"):
        planning(prior=prior, terminal_value=True)
