"""A step through TorchRL, and TorchRL's collector with two workers, compared with bare loops over one environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torchrl.envs import EnvBase

from mbrl.bench import Row
from mbrl.bench._machine import median_seconds, row
from mbrl.collecting.collector import make_collector, shut_down
from mbrl.envs.metaworld import MetaWorld, make_env
from policies.random import RandomPolicy

FRAMES, BATCHES = {"state": 1000, "pixels": 200}, 5
EPISODE_LENGTH = 200  # env steps
OPTIONS: dict[str, Any] = {"task": "reach", "action_repeat": 1}

Actions = npt.NDArray[np.float32]


def run() -> Iterator[Row]:
    """Steps per second through TorchRL, in one process, in two and, if Ray is installed, in two Ray workers."""
    yield from _compare_steps()
    yield from _compare_with_bare_loop("process", "two processes", "state", "≥ 0.75")
    yield from _compare_with_bare_loop("process", "two processes", "pixels")
    if find_spec("ray") is not None:
        yield from _compare_with_bare_loop("ray", "two Ray workers", "state")
        yield from _compare_with_bare_loop("ray", "two Ray workers", "pixels")


def _compare_steps() -> Iterator[Row]:
    """Steps from state in this process, in processor time: agent steps of two env steps, and env steps."""
    frames = FRAMES["state"]
    actions = np.random.default_rng(0).uniform(-1, 1, (frames, 4)).astype(np.float32)
    settings: dict[str, Any] = {"task": "reach", "pixels": False}
    steps = [_torchrl_steps(make_env(**settings), actions), _bare_steps(MetaWorld(**settings), actions)]
    ours, bare = median_seconds([partial(next, rounds) for rounds in steps], BATCHES, time.process_time)
    yield row("collector: a step through TorchRL, state", 1e6 * ours / frames, "µs")
    yield row("collector: a step through TorchRL over a bare step, state", ours / bare, "×", "≤ 1.1")

    # Episodes of one length on both sides, and their resets are counted.
    env = make_env(**settings, action_repeat=1, episode_length=EPISODE_LENGTH)
    plain = gymnasium.make("metaworld:Meta-World/MT1", env_name="reach-v3", seed=0, max_episode_steps=EPISODE_LENGTH)
    steps = [_torchrl_steps(env, actions), _bare_steps(plain, actions)]
    ours, bare = median_seconds([partial(next, rounds) for rounds in steps], BATCHES, time.process_time)
    yield row("collector: an env step of plain Gymnasium, state", 1e6 * bare / frames, "µs")
    yield row("collector: an env step through TorchRL over plain Gymnasium, state", ours / bare, "×", "≤ 1.0")


def _torchrl_steps(env: EnvBase, actions: Actions) -> Iterator[None]:
    """Rounds of steps with the given actions [steps, 4]; each goes on where the last one ended."""
    tensors, carried = torch.from_numpy(actions), env.reset()
    while True:
        for action in tensors:
            carried = env.step_and_maybe_reset(carried.set("action", action))[1]
        yield


def _bare_steps(env: gymnasium.Env[Any, Any], actions: Actions) -> Iterator[None]:
    """The same in a Gymnasium environment."""
    env.reset()
    while True:
        for action in actions:
            if env.step(action)[3]:
                env.reset()
        yield


def _compare_with_bare_loop(backend: str, name: str, observation: str, target: str = "") -> Iterator[Row]:
    settings, frames = {**OPTIONS, "pixels": observation == "pixels"}, FRAMES[observation]
    env = make_env(**settings)
    policy = RandomPolicy(env.observation_spec, env.action_spec)
    env.close()
    options: dict[str, Any] = {"workers": 2, "frames_per_batch": frames, "backend": backend}
    collector = make_collector(partial(make_env, **settings), policy, seed=0, random_steps=0, **options)
    try:
        steps = iter(collector)
        next(steps)  # The first batch includes the start of the workers.
        actions = np.random.default_rng(0).uniform(-1, 1, (frames, 4)).astype(np.float32)
        bare = partial(next, _bare_steps(MetaWorld(**settings), actions))
        bare()  # It begins with a reset.
        rates = [(frames / _seconds(partial(next, steps)), frames / _seconds(bare)) for _ in range(BATCHES)]
    finally:
        shut_down(collector)
    our_rate, bare_rate = (median(column) for column in zip(*rates, strict=True))
    yield row(f"collector: {name}, {observation}", our_rate, "env steps/s")
    yield row(f"collector: bare loop, one process, {observation}", bare_rate, "env steps/s")
    yield row(f"collector: {name} over bare loop, {observation}", our_rate / bare_rate, "×", target)


def _seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began
