"""Several updates in a row: the next batch is drawn before an update waits for the GPU, and nothing else changes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.agents.learners import Learner, learner_for
from mbrl.agents.schedule import Schedule
from policies.base import Policy
from policies.sac import SAC
from tests.parts_on_a_device import ACTIONS, FRAMES, NUMBERS, drqv2, episodes, filled_replay, latent_planner
from tests.pretended_device import GPU, pretended_device

MAKERS = {"SAC": lambda: SAC(NUMBERS, ACTIONS), "DrQ-v2": lambda: drqv2(FRAMES, ACTIONS), "TD-MPC2": latent_planner}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def a_gpu_with_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 2**30)


def make(name: str, device: torch.device = CPU) -> tuple[Learner, Any]:
    """A learner, and a replay on the CPU with demonstrations, from the same random numbers each time."""
    torch.manual_seed(0)
    policy: Policy = MAKERS[name]()
    schedule = Schedule(batch_size=4, updates_per_step=1, learning_starts=0, segment_length=4)
    if policy.learns_from == "segments":
        schedule = Schedule(**{**vars(schedule), "real_ratio": 0.0})
    replay = filled_replay(device, 3, "cpu")
    replay.demo_share = 0.5
    replay.add_demos(list(episodes().unbind(0)))
    return learner_for(policy.to(device), None, schedule), replay


def learned(policy: Policy, metrics: list[dict[str, Tensor]]) -> list[Tensor]:
    """Every weight, every metric, and the next random number."""
    return [*policy.state_dict().values(), *(value for row in metrics for value in row.values()), torch.rand(1)]


@pytest.mark.parametrize("name", MAKERS)
def test_updates_in_a_row_are_those_one_by_one_to_the_bit(name: str) -> None:
    """The policies draw from the CPU's random numbers here, between the batches."""
    (rowed, replay), (single, same) = make(name), make(name)
    torch.manual_seed(1)
    expected = learned(single.policy, [single.update(same, 0.5) for _ in range(3)])
    torch.manual_seed(1)
    metrics = [*rowed.updates(replay, 0.5, 2), *rowed.updates(replay, 0.5, 0), *rowed.updates(replay, 0.5, 1)]
    found = learned(rowed.policy, metrics)
    assert all(map(torch.equal, found, expected)) and len(found) == len(expected)


@pytest.mark.parametrize("name", MAKERS)
def test_the_next_batch_is_copied_before_an_update_is_waited_for(name: str) -> None:
    with pretended_device() as counts:
        learner, replay = make(name, GPU)
        learner.update(replay, 0.0)
        before, wait = counts.bytes_to_gpu, counts.wait
        learner.update(replay, 0.0)
        batch, pageable, copied = counts.bytes_to_gpu - before, counts.pageable_bytes, list[int]()
        before = counts.bytes_to_gpu

        def noted(*what: Any) -> None:
            copied.append(counts.bytes_to_gpu - before)
            wait(*what)

        counts.wait = noted
        for _ in learner.updates(replay, 0.0, 3):
            pass
    assert copied == [2 * batch, 3 * batch, 3 * batch], "one wait an update"
    assert counts.pageable_bytes - pageable < 0.01 * batch, "batches with demonstrations are in pinned memory too"


def test_a_loss_that_is_not_finite_ends_the_updates_at_once() -> None:
    learner, replay = make("SAC")
    updates: Iterator[Any] = learner.updates(replay, 0.0, 3)
    next(updates)
    with torch.no_grad():
        next(learner.policy.actor.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"actor_loss = nan"):
        next(updates)


def test_a_policy_that_asks_for_real_steps_gets_as_many_segments_as_rollouts() -> None:
    """Their frames are stacked as those of transitions are: newest last, and the first of an episode repeated."""
    rollouts = TensorDict(action=torch.zeros(2, 3, 1), batch_size=[2, 3])

    class Asks(Policy):
        learns_from, replay_rows, segment_history = "rollouts", 11, 2

        def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
            seen.append(batch)
            return {}

    class Imagined:
        def rollouts(self, batch_size: int) -> TensorDict:
            return rollouts.clone()

    seen: list[TensorDictBase] = []
    replay = filled_replay(CPU, 3, "cpu")
    schedule = Schedule(batch_size=4, updates_per_step=1, learning_starts=0, real_ratio=0.0)
    learner_for(Asks(), Imagined(), schedule).update(replay, 0.0)  # type: ignore[arg-type]
    real = seen[0]["real"]
    assert real.batch_size == (2, 11) and seen[0]["action"].shape == (2, 3, 1)
    pixels = real["pixels"]  # whole episodes: there are no longer ones
    torch.testing.assert_close(real["frames"][:, 4], torch.cat([pixels[:, 2], pixels[:, 3], pixels[:, 4]], 1))
    torch.testing.assert_close(real["frames"][:, 0], pixels[:, 0].repeat(1, 3, 1, 1))
