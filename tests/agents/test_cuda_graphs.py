"""Policy updates from graphs equal eager ones; graphs are played on the CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.agents.cuda_graphs import WARM_UP, Captured, CapturedUpdates, Graphs
from policies.base import Policy, forget_moments
from policies.sac import SAC
from policies.two_hot_critics import dropped
from tests.parts_on_a_device import ACTIONS, FRAMES, NUMBERS, dreamer_and_replay, drqv2, latent_planner, transitions
from tests.pretended_device import GPU, Counts, pretended_device

MAKERS: dict[str, Callable[[], Policy]] = {
    "SAC": lambda: SAC(NUMBERS, ACTIONS),
    "DrQ-v2": lambda: drqv2(FRAMES, ACTIONS),
    "TD-MPC2": latent_planner,
}


def random_batch(name: str) -> TensorDict:
    """What a policy learns from, [6] or, of segments, [3, 4]."""
    if name == "TD-MPC2":
        return torch.stack([transitions(NUMBERS, rows=4).exclude("cloning", "imagined") for _ in range(3)])
    return transitions(FRAMES if name == "DrQ-v2" else NUMBERS)


class Counted(Graphs):
    """Counts captures, and what each of them and each replay asks of the GPU."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts, self.captured, self.asked = counts, 0, list[tuple[int, int]]()

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        self.captured += 1
        asked = self.counts.synchronisations, self.counts.to_gpu
        play, result = super().capture(work)
        self.asked.append((self.counts.synchronisations - asked[0], self.counts.to_gpu - asked[1]))

        def replay() -> None:
            before = self.counts.synchronisations, self.counts.to_gpu
            play()
            self.asked.append((self.counts.synchronisations - before[0], self.counts.to_gpu - before[1]))

        return replay, result


def updated(name: str, captured: bool, counts: Counts) -> tuple[dict[str, Tensor], list[dict[str, float]], Counted]:
    """Weights and metrics of updates on batches of two layouts, with moments that are forgotten in between."""
    torch.manual_seed(0)
    policy = MAKERS[name]().to(GPU)
    graphs = Counted(counts)
    update = CapturedUpdates(policy, lambda: graphs) if captured else policy.update
    torch.manual_seed(1)
    batches = [random_batch(name).to(GPU) for _ in range(2 * WARM_UP + 5)]
    metrics = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        if number == WARM_UP + 3:
            forget_moments(policy.optimizers["critic"])
        metrics.append({name: float(value) for name, value in update(batch).items()})
    return {key: value.cpu() for key, value in policy.state_dict().items()}, metrics, graphs


def test_dropout_in_a_graph_drops_another_number_of_values_each_time() -> None:
    torch.manual_seed(0)
    with pretended_device():
        work = Captured(lambda batch: (dropped(batch["values"], 1e-4) == 0).sum())
        batch = TensorDict(values=torch.ones(100_000)).to(GPU)
        found = [int(work(batch)) for _ in range(WARM_UP + 8)][WARM_UP:]
    assert len(set(found)) > 1 and 40 < sum(found) < 140, "eight times 10 on average"


@pytest.mark.parametrize("name", ["SAC", "DrQ-v2", pytest.param("TD-MPC2", marks=pytest.mark.slow)])  # 4 s
def test_updates_from_graphs_are_the_eager_ones(name: str) -> None:
    with pretended_device() as counts:
        weights, metrics, _ = updated(name, False, counts)
        found, measured, graphs = updated(name, True, counts)
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    assert measured == metrics
    assert graphs.captured == 2, "anew when moments were forgotten"
    assert set(graphs.asked) == {(0, 0)}, "what is captured neither waits nor copies"


@pytest.mark.parametrize("name", MAKERS)
def test_an_update_changes_all_that_it_changes_in_place(name: str) -> None:
    with pretended_device():
        policy = MAKERS[name]().to(GPU)
        batch = random_batch(name).to(GPU)

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
        update = CapturedUpdates(policy, lambda: Counted(counts))
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


@pytest.mark.slow  # 6 and 7 s
@pytest.mark.parametrize("key", ["state", "pixels"])
def test_dreamerv3_learns_the_same_from_graphs(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 2**30)
    found = []
    for captured in (False, True):
        with pretended_device() as counts:
            graphs = Counted(counts)
            monkeypatch.setattr("mbrl.agents.dreamer.Captured", partial(Captured, graphs=lambda made=graphs: made))
            torch.manual_seed(0)
            learner, replay = dreamer_and_replay(key, GPU, captured)
            metrics = [learner.update(replay, 0.0) for _ in range(WARM_UP + 3)]
            numbers = [{name: float(value) for name, value in each.items()} for each in metrics]
            found.append((numbers, {name: value.cpu() for name, value in learner.policy.state_dict().items()}))
    (metrics, weights), (others, moved) = found
    assert others == metrics
    assert all(torch.equal(moved[name], value) for name, value in weights.items())
    assert graphs.captured == 1 and graphs.asked == [(0, 0)] * 4, "a capture and three replays"
