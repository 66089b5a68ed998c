"""A step through TorchRL, and TorchRL's collector with two workers, compared with a bare loop over one environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np

from mbrl.bench import Row
from mbrl.bench._machine import median_seconds, row
from mbrl.collecting.collector import make_collector, shut_down
from mbrl.envs.metaworld import MetaWorld, make_env
from policies.random import RandomPolicy

FRAMES, BATCHES = {"state": 1000, "pixels": 200}, 5
OPTIONS: dict[str, Any] = {"task": "reach", "action_repeat": 1}


def run() -> Iterator[Row]:
    """Steps per second through TorchRL, in one process, in two and, if Ray is installed, in two Ray workers."""
    yield from _compare_steps()
    yield from _compare_with_bare_loop("process", "two processes", "state", "≥ 0.75")
    yield from _compare_with_bare_loop("process", "two processes", "pixels")
    if find_spec("ray") is not None:
        yield from _compare_with_bare_loop("ray", "two Ray workers", "state")
        yield from _compare_with_bare_loop("ray", "two Ray workers", "pixels")


def _compare_steps() -> Iterator[Row]:
    """Agent steps from state in this process, as experiments take them: two env steps each."""
    settings: dict[str, Any] = {"task": "reach", "pixels": False}
    env, frames = make_env(**settings), FRAMES["state"]
    action = env.action_spec.rand()

    def step() -> None:
        carried = env.reset()
        for _ in range(frames):
            carried = env.step_and_maybe_reset(carried.set("action", action))[1]

    ours, bare = median_seconds([step, partial(_bare_loop, MetaWorld(**settings), frames)], BATCHES)
    yield row("collector: a step through TorchRL, state", 1e6 * ours / frames, "µs")
    yield row("collector: a step through TorchRL over a bare step, state", ours / bare, "×", "≤ 1.1")


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
        bare = partial(_bare_loop, MetaWorld(**settings), frames)
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


def _bare_loop(env: MetaWorld, frames: int) -> None:
    generator = np.random.default_rng(0)
    env.reset()
    for _ in range(frames):
        if env.step(generator.uniform(-1, 1, 4).astype(np.float32))[3]:
            env.reset()
