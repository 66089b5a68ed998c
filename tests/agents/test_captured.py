"""Policy updates from graphs equal eager ones; a capture is played by an update that the replay repeats."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mbrl.agents.captured import WARM_UP, CapturedUpdates
from policies.base import Policy, forget_moments
from policies.sac import SAC
from tests.parts_on_a_device import ACTIONS, FRAMES, NUMBERS, drqv2, transitions
from tests.pretended_device import GPU, Counts, pretended_device

MAKERS = {"SAC": lambda: SAC(NUMBERS, ACTIONS), "DrQ-v2": lambda: drqv2(FRAMES, ACTIONS)}


class Replays:
    """Plays a capture: nothing is done at first, and each replay does the work and counts what it asks of the GPU."""

    def __init__(self, policy: Policy, counts: Counts) -> None:
        self.policy, self.counts = policy, counts
        self.captured, self.asked = 0, list[tuple[int, int]]()

    def warm_up(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return work()

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captured += 1
        kept, moments = (
            copy.deepcopy(self.policy.state_dict()),
            [copy.deepcopy(o.state_dict()) for o in self.optimizers],
        )
        with torch.random.fork_rng(devices=[]):
            result = work()
        self.policy.load_state_dict(kept)
        for optimizer, state in zip(self.optimizers, moments, strict=True):
            for number, values in state["state"].items():
                mine = optimizer.state[optimizer.param_groups[0]["params"][number]]
                for name, value in values.items():
                    mine[name].copy_(value)

        def replay() -> None:
            before = self.counts.synchronisations, self.counts.to_gpu
            result.copy_(work())
            self.asked.append((self.counts.synchronisations - before[0], self.counts.to_gpu - before[1]))

        return replay, result

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self.policy.optimizers.values())


def updated(name: str, captured: bool, counts: Counts) -> tuple[dict[str, Tensor], list[dict[str, float]], Replays]:
    """Weights and metrics of updates on batches of two layouts, with moments that are forgotten in between."""
    torch.manual_seed(0)
    policy = MAKERS[name]().to(GPU)
    replays = Replays(policy, counts)
    update = CapturedUpdates(policy, lambda: replays) if captured else policy.update
    torch.manual_seed(1)
    batches = [transitions(FRAMES if name == "DrQ-v2" else NUMBERS).to(GPU) for _ in range(2 * WARM_UP + 5)]
    metrics = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        if number == WARM_UP + 3:
            forget_moments(policy.optimizers["critic"])
        metrics.append({name: float(value) for name, value in update(batch).items()})
    return {key: value.cpu() for key, value in policy.state_dict().items()}, metrics, replays


@pytest.mark.parametrize("name", MAKERS)
def test_updates_from_graphs_are_the_eager_ones(name: str) -> None:
    with pretended_device() as counts:
        weights, metrics, _ = updated(name, False, counts)
        found, measured, replays = updated(name, True, counts)
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    assert measured == metrics
    assert replays.captured == 2, "anew when moments were forgotten"
    assert set(replays.asked) == {(0, 0)}, "what is captured neither waits nor copies"


@pytest.mark.parametrize("name", MAKERS)
def test_an_update_changes_all_that_it_changes_in_place(name: str) -> None:
    with pretended_device():
        policy = MAKERS[name]().to(GPU)
        batch = transitions(FRAMES if name == "DrQ-v2" else NUMBERS).to(GPU)

        def places() -> list[int]:
            moments = [v for o in policy.optimizers.values() for state in o.state.values() for v in state.values()]
            return [value.data_ptr() for value in (*policy.state_dict().values(), *moments)]

        policy.update(batch)
        before = places()
        policy.update(batch)
        assert places() == before


def test_losses_from_a_graph_that_are_not_finite_are_refused() -> None:
    with pretended_device() as counts:
        policy = MAKERS["SAC"]().to(GPU)
        update = CapturedUpdates(policy, lambda: Replays(policy, counts))
        batch = transitions(NUMBERS).to(GPU)
        for _ in range(WARM_UP + 2):
            update(batch)
        batch["next", "reward"] = batch["next", "reward"] / 0
        with pytest.raises(FloatingPointError, match="critic_loss"):
            update(batch)


def test_a_cpu_has_no_graphs() -> None:
    policy = MAKERS["SAC"]()
    update = CapturedUpdates(policy)  # its graphs need a GPU
    for _ in range(WARM_UP + 1):
        assert update(transitions(NUMBERS))["critic_loss"].isfinite()
    assert not policy.optimizers["critic"].param_groups[0].get("capturable")
