"""The collector in this process and in several: seeds, episodes and chunks."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded, Composite

from mbrl.collecting.collector import make_collector
from mbrl.envs.toy import make_env
from mbrl.replay.replay import Replay
from policies.base import Policy
from policies.random import RandomPolicy
from policies.sac import SAC
from tests.pretended_device import GPU, pretended_device

make_toy = partial(make_env, resolution=16, episode_length=10)


def policy() -> RandomPolicy:
    return RandomPolicy(Composite(), Bounded(-1, 1, (2,)))


def collect(batches: int, **options) -> Replay:
    torch.manual_seed(0)
    collector = make_collector(make_toy, policy(), **{"seed": 3, "random_steps": 0, **options})
    replay = Replay(1000)
    try:
        for _, batch in zip(range(batches), collector, strict=False):
            replay.extend(batch)
    finally:
        collector.shutdown()
    return replay


def goals(replay: Replay) -> set[tuple[float, ...]]:
    """The first state of every episode, which holds its goal."""
    return {tuple(replay.online.records["state"][episode.start].tolist()) for episode in replay.online.episodes}


def test_chunks_make_the_same_episodes():
    assert goals(collect(6, frames_per_batch=5)) == goals(collect(3, frames_per_batch=10))


def test_goes_on_with_the_episode_it_is_told():
    whole, rest = collect(4, frames_per_batch=10), collect(2, frames_per_batch=10, first_episode=2)
    assert len(goals(whole)) == 4 and goals(rest) < goals(whole)


def needs_package(backend: str) -> None:
    if backend == "ray":
        pytest.importorskip("ray", reason="pip install -e '.[ray]'")


@pytest.mark.process
@pytest.mark.parametrize("backend", ["process", "ray"])
def test_two_workers_bring_episodes_of_their_own(backend, fork_server):
    needs_package(backend)
    replay = collect(4, frames_per_batch=20, workers=2, backend=backend)
    assert len(replay.online.episodes) == 8
    assert len(goals(replay)) == 8, "workers do not share goals"
    assert goals(collect(4, frames_per_batch=10)) & goals(replay), "worker 0 has the goals of a single process"
    again = collect(1, frames_per_batch=20, workers=2, backend=backend)
    actions, repeated = (found.online.records["action"][:22] for found in (replay, again))
    assert torch.equal(actions, repeated), "their exploration is seeded"
    assert not torch.equal(actions[:10], actions[11:21]), "and differs between workers"


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(2))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.level.expand(*state.shape[:-1], 2)


class ConstantPolicy(Policy):
    """Always the same action, a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = TensorDictModule(_Constant(), in_keys=["state"], out_keys=["action"])

    def update(self, batch):
        return {}


@pytest.mark.process
@pytest.mark.parametrize(("workers", "backend"), [(1, "process"), (2, "process"), (2, "ray")])
def test_collectors_act_on_the_newest_weights(workers, backend, fork_server):
    needs_package(backend)
    learner = ConstantPolicy()
    options = {"seed": 0, "workers": workers, "frames_per_batch": 20, "random_steps": 0, "backend": backend}
    collector = make_collector(make_toy, learner, **options)
    steps = iter(collector)
    try:
        assert (next(steps)["action"] == 0).all()
        with torch.no_grad():
            learner.actor.module.level.fill_(0.5)  # in place, as an optimiser's step
        late = [next(steps)["action"] for _ in range(3)][-1]
    finally:
        collector.shutdown()
    assert (late == 0.5).all()


def test_chunks_that_cannot_be_shared_out():
    for workers, works in ((3, 9), (4, 8), (32, 32)):
        with pytest.raises(ValueError, match=rf"multiple of workers .*: set collect\.frames_per_batch={works}$"):
            make_collector(make_toy, policy(), seed=0, workers=workers, frames_per_batch=10, random_steps=0)


def test_backends_that_are_not_there_are_one_line(monkeypatch):
    options = {"seed": 0, "workers": 2, "frames_per_batch": 10, "random_steps": 0}
    with pytest.raises(ValueError, match=r"no collect.backend 'rpc': choose one of process, ray"):
        make_collector(make_toy, policy(), **options, backend="rpc")
    monkeypatch.setattr("mbrl.collecting.collector.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[ray\]'"):
        make_collector(make_toy, policy(), **options, backend="ray")


@pytest.mark.slow
def test_a_run_with_several_processes_comes_to_its_end(tmp_path):
    settings = [
        "agent=sac", "env=toy", "env.episode_length=20", "collect.workers=2", "collect.frames_per_batch=20",
        "threads=1", "total_env_steps=100", "eval.every=100", "eval.episodes=1", "agent.learning_starts=50",
        f"run_dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "mbrl", "train", *settings], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_a_policy_of_state_on_a_gpu_acts_on_the_cpu_with_the_newest_weights() -> None:
    """The GPU is asked for each tensor of the actor once in a batch of steps, and computes no action."""
    with pretended_device() as counts:
        env = make_toy(seed=0, worker=0)
        learner = SAC(env.observation_spec, env.action_spec).to(GPU)
        steps = iter(make_collector(make_toy, learner, seed=0, random_steps=0, frames_per_batch=20))
        assert next(steps)["action"].std() > 0.1
        *weights, bias = learner.actor.parameters()
        with torch.no_grad():  # in place, as an optimiser's step
            weights[-1].zero_()
            bias.copy_(torch.tensor([9.0, 9.0, -9.0, -9.0], device=GPU))
        before = counts.kernels, counts.to_gpu, counts.synchronisations
        batch = next(steps)
        asked = counts.kernels - before[0], counts.to_gpu - before[1], counts.synchronisations - before[2]
    assert (batch["action"] > 0.99).all()
    assert asked == (len(weights) + 1, 0, len(weights) + 1)
