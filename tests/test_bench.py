"""The benchmarks' own arithmetic: what they count, and that the loops they compare do the same."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torchrl.data import Bounded, Composite

from mbrl import bench
from mbrl.bench import (
    _baseline_mbpo,
    _baseline_sac,
    _machine,
    _published_loop,
    _torchrl_dreamer,
    checkpoint,
    dreamer,
    encoders,
    gpu,
    imagination,
    mbpo,
    policies,
    replay,
    tdmpc2,
)
from mbrl.bench._models import NANO, build, starts
from mbrl.errors import UserError
from worldmodel.ivideogpt.defects import PublishedDefects
from worldmodel.ivideogpt.rollout.decoding import Sampling


def test_parts_are_no_benchmarks_and_long_ones_wait_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"imagination", "training", "memory"} <= set(bench.names())
    assert not any(name.startswith("_") for name in bench.names())
    ran: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name.rsplit(".", 1)[1]

        def run(self) -> list[bench.Row]:
            ran.append(self.name)
            return []

    monkeypatch.setattr(bench, "import_module", Fake)
    list(bench.run_benchmarks())
    assert set(ran) == set(bench.names()) - bench.ON_REQUEST
    ran.clear()
    list(bench.run_benchmarks(["memory"]))
    assert ran == ["memory"]


@pytest.mark.parametrize(("module", "small"), [(checkpoint, {"LAYERS": 2, "WIDTH": 8}), (replay, {"EPISODES": 3})])
def test_what_uses_the_disk_runs(monkeypatch: pytest.MonkeyPatch, module: Any, small: dict[str, int]) -> None:
    for name, value in {**small, "REPEATS": 1}.items():
        monkeypatch.setattr(module, name, value)
    values = [row["value"] for row in module.run()]
    assert values and all(value > 0 for value in values)


def test_operations_are_counted() -> None:
    left, right = torch.randn(3, 5), torch.randn(7, 5)
    assert _machine.count_flops(lambda: F.linear(left, right)) == 2 * 3 * 5 * 7
    assert _machine.count_flops(lambda: F.linear(left, right), ("convolution",)) == 0


def test_shares_are_of_the_whole() -> None:
    maps, kernel = torch.randn(8, 32, 64, 64), torch.randn(32, 32, 3, 3)
    every = [_machine.time_shares(partial(F.conv2d, maps, kernel)) for _ in range(3)]
    assert [sum(shares.values()) for shares in every] == pytest.approx([1.0] * 3)
    assert max(shares["convolutions"] for shares in every) > 0.5  # The best: a busy machine lowers the others.


@torch.no_grad()
def test_the_published_loop_imagines_what_ours_does() -> None:
    model = build(NANO, 5)
    model.precision.resume("float32")
    rollouts = model.rollouts
    rollouts.sampling, rollouts.defects = Sampling(top_k=1), PublishedDefects(any_token=True)  # of one token: greedy
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    context, actions = starts(model, 3, 3)
    theirs = _published_loop.imagine(model, context, actions, decode=False)
    state, ours = model.start(context), []
    for action in actions.unbind(1):
        state, frame = rollouts.advance(state, action)
        ours.append(frame.tokens)
    assert torch.equal(torch.stack(ours, 1), theirs)


def test_token_evaluations_by_hand() -> None:
    model = build(NANO)  # contexts of 2 * 64 + 1 tokens, frames of 16 and a slot
    assert imagination.token_evaluations(model, 2) == (129 + 34, (129 + 17) + (129 + 34))
    assert imagination.token_evaluations(model, 10) == (129 + 170, 1290 + 17 * 55)


def test_the_plain_loop_learns_what_sac_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "EPISODES", 2)
    policy, batch = policies.build("sac", Bounded(-1.0, 1.0, (4,))), policies.filled_replay().transitions(16)
    other = copy.deepcopy(policy)
    update = _baseline_sac.baseline_update(other, batch)
    for seed in range(3):
        torch.manual_seed(seed)
        policy.update(batch)
        torch.manual_seed(seed)
        update()
    for name, value in policy.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), value)


def test_both_mbpo_loops_do_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "EPISODES", 2)
    config = mbpo._config()
    config.agent.world_model.update({"members": 3, "elites": 2, "width": 16, "layers": 2, "batch_size": 8})
    config.agent.update({"model_fit_every": 20, "imagine_every": 10, "batch_size": 32})
    config.agent.update({"model_updates_first": 4, "model_updates_per_step": 0.2})
    config.agent.imagination.rollouts = 10
    replay = policies.filled_replay()
    agent = mbpo._agent(config, replay)
    agent.update(replay, agent.schedule.learning_starts, mbpo.ENV_STEPS)
    before = dict(agent.counts)
    agent.update(replay, agent.schedule.learning_starts + 20, mbpo.ENV_STEPS)
    done = {name: count - before[name] for name, count in agent.counts.items()}
    assert done == {"policy": 20, "world_model": 4, "imagination": 2, "fits": 1}
    learners = {"actor": agent.policy.actor, "critic": agent.policy.critic, "ensemble": agent.world_model}
    weights = {name: [p.clone() for p in part.parameters()] for name, part in learners.items()}
    counted = {"imagine": 0, "baseline_update": 0}
    for name in counted:
        function = getattr(_baseline_mbpo, name)

        def count(*arguments: Any, name: str = name, function: Any = function) -> Any:
            counted[name] += 1
            result = function(*arguments)
            if name == "imagine":
                return result
            return lambda: counted.update(baseline_update=counted["baseline_update"] + 1) or result()

        monkeypatch.setattr(_baseline_mbpo, name, count)
    _baseline_mbpo.baseline_updates(agent, replay.steps("state"), fits=4, imaginations=2, updates=20)()
    assert counted == {"imagine": 2, "baseline_update": 1 + 20}
    for name, part in learners.items():
        moved = [not torch.equal(*pair) for pair in zip(part.parameters(), weights[name], strict=True)]
        assert all(moved), name


def test_dreamers_compared_are_of_one_size_and_both_learn() -> None:
    config = dreamer.compose_for("state")
    config.agent.policy.world_model.units, config.agent.batch_size, config.agent.segment_length = 32, 2, 4
    config.agent.horizon = 2
    spec = dreamer.OBSERVATIONS["state"]
    ours, parameters = dreamer.learner_update(config, Composite(state=spec))
    losses = _torchrl_dreamer.learner("state", spec.shape, dreamer.ACTIONS, 32, 2)
    theirs, their_parameters = _torchrl_dreamer.updater(losses, dreamer._sample(config, spec), 1e-3)
    assert parameters == pytest.approx(their_parameters, rel=0.01)
    before = [parameter.clone() for parameter in losses.model_loss.parameters()]
    for _ in range(2):  # the first learning rate is 0
        assert ours()["model_reward_loss"] > 0
        theirs()
    moved = [not torch.equal(*pair) for pair in zip(before, losses.model_loss.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)


@pytest.mark.process
def test_updates_from_pixels_are_measured_with_both_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "ROUNDS", 1)
    monkeypatch.setattr(encoders, "PUBLISHED", ("drqv2", 2))
    monkeypatch.setattr(encoders, "CPU", ("drqv2_cpu", 2))
    found = encoders.run()
    assert [row["name"] for row in found][:2] == ["policy update: drqv2, batch 2", "policy update: drqv2_cpu, batch 2"]
    assert all(row["value"] > 0 for row in found)


def test_tdmpc2_is_measured_beside_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tdmpc2, "REPEATS", 1)
    monkeypatch.setattr(policies, "EPISODES", 2)
    plans, over_plans, updates, over_updates = tdmpc2.run()
    assert (plans["unit"], updates["unit"]) == ("agent steps/s", "updates/s")
    assert plans["value"] > 0 and updates["value"] > 0  # type: ignore[operator]
    assert over_plans["value"] > 0 and over_updates["value"] > 0  # type: ignore[operator]


def test_a_piece_is_measured_by_its_rate() -> None:
    calls: list[int] = []
    piece = gpu.Piece("work", lambda: calls.append(1), amount=10, unit="rows/s")
    (measured,) = gpu.measure(piece, lambda: None, seconds=0.0)
    assert len(calls) == 1 and measured["name"] == "work" and measured["unit"] == "rows/s"


def test_only_what_measures_a_device_takes_one() -> None:
    with pytest.raises(UserError, match="'replay' measures the CPU: --device is for gpu"):
        bench.run_benchmarks(["replay"], "cuda")
    with pytest.raises(UserError, match="no GPU that torch can use"):
        bench.run_benchmarks([], "cuda")
    with pytest.raises(UserError, match="--device cpu is no GPU with CUDA: give cuda"):
        bench.run_benchmarks(["gpu"], "cpu")
