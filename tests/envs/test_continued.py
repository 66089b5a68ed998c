"""A world model beyond its horizon: known answers of a model that counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.envs.continued import Continued
from mbrl.errors import UserError
from tests.fakes import SIZE, CountingWorldModel


class Watched(CountingWorldModel):
    """Keeps the contexts that it is started from."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[TensorDictBase] = []

    def start(self, context: TensorDictBase) -> Tensor:
        self.contexts.append(context)
        return super().start(context)


def context(brightness: int = 3) -> TensorDict:
    """Two steps of two rollouts, whose frames count up to `brightness`."""
    frames = torch.tensor([brightness - 1, brightness], dtype=torch.uint8)[None, :, None, None, None]
    return TensorDict(
        pixels=frames.expand(2, 2, 3, SIZE, SIZE).clone(), action=torch.full((2, 2, 2), 0.5), batch_size=[2, 2]
    )


def run(model: CountingWorldModel, state: Any, steps: range) -> tuple[Any, list[TensorDictBase]]:
    found = []
    for step in steps:
        state, predicted = model.step(state, torch.full((2, 2), step / 100))
        found.append(predicted)
    return state, found


def test_it_goes_on_from_its_own_predictions() -> None:
    model = Watched()
    continued = Continued(model, 25)
    assert (continued.max_horizon, continued.context_length) == (25, 2)
    _, steps = run(continued, continued.start(context()), range(25))
    assert [int(step["pixels"][0, 0, 0, 0]) for step in steps] == list(range(4, 29)), "as if it had no end"
    assert [float(step["reward"][1]) for step in steps] == pytest.approx([step / 100 for step in range(25)])
    starts = [each["pixels"][0, :, 0, 0, 0].tolist() for each in model.contexts]
    assert starts == [[2, 3], [12, 13], [22, 23]], "every tenth step"
    # frame 13 is what action number 9 led to
    assert model.contexts[1]["action"][0, :, 0].tolist() == pytest.approx([0.09, 0.0])


def test_it_is_started_anew_after_as_many_steps_as_it_was_trained_to_imagine() -> None:
    model = Watched()
    model.trained_horizon = 4
    continued = Continued(model, 6)
    state, _ = run(continued, continued.start(context()), range(3))
    assert len(model.contexts) == 1
    copies = continued.fork(state, 2)
    assert copies.newest.batch_size == (4, 2)
    run(continued, state, range(3))
    assert len(model.contexts) == 2


def test_it_goes_on_from_what_was_observed() -> None:
    class Reading(Watched):
        trained_horizon = 1
        reads_reward = True

        def observe(self, state: Any, action: Tensor, observed: TensorDictBase) -> tuple[Any, TensorDict]:
            return observed["pixels"], TensorDict(reward=action[:, :1], batch_size=[len(action)])

    model = Reading()
    continued = Continued(model, 6)
    seen = context(100)[:, -1]
    state, predicted = continued.observe(continued.start(context()), torch.full((2, 2), 0.25), seen)
    assert predicted["reward"].tolist() == [[0.25], [0.25]]
    _, (step,) = run(continued, state, range(1))
    assert model.contexts[1]["pixels"][0, :, 0, 0, 0].tolist() == [3, 100]
    assert step["pixels"][0, 0, 0, 0] == 101


def test_the_state_goes_on_where_a_model_of_pixels_predicts_it() -> None:
    class Proprioceptive(Watched):
        """Its state counts up too, and is narrower than that of the environment."""

        trained_horizon = 1

        def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
            state, predicted = super().step(state, action)
            return state, predicted.set("state", state[:, 0, 0, :1].float())

    model = Proprioceptive()
    continued = Continued(model, 6)
    steps = context().set("state", torch.tensor([[2.0, 9.0], [3.0, 9.0]]).expand(2, 2, 2))
    run(continued, continued.start(steps), range(3))
    assert [each["state"][0, :, 0].tolist() for each in model.contexts] == [[2, 3], [3, 4], [4, 5]]


def test_a_model_that_needs_more_than_its_predictions_is_not_continued() -> None:
    model = CountingWorldModel()
    model.context_keys = ("snapshot",)
    assert Continued(model, 10).max_horizon == 10
    with pytest.raises(UserError, match=r"a horizon of 11 steps: .* the snapshot of a real step, .* can imagine 10"):
        Continued(model, 11)


def test_the_initial_frame_of_the_episode_stays_what_it_is() -> None:
    model = Watched()
    model.context_keys = ("initial",)
    first = torch.full((2, 2, 3, SIZE, SIZE), 200, dtype=torch.uint8)
    continued = Continued(model, 25)
    state = continued.fork(continued.start(context().set("initial", first)), 1)
    run(continued, state, range(25))
    assert [each["pixels"][0, -1, 0, 0, 0].item() for each in model.contexts] == [3, 13, 23]
    assert all(torch.equal(each["initial"], first) for each in model.contexts)
