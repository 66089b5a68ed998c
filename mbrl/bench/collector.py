"""TorchRL's collector with two processes against a bare loop over two environments, in state, in one run."""

from __future__ import annotations

import time
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector

from mbrl.envs.metaworld import MetaWorld, make_env

FRAMES, BATCHES = 1000, 5
OPTIONS: dict[str, Any] = {"task": "reach", "pixels": False, "action_repeat": 1}


class _Zeros(nn.Module):
    def forward(self, state: Tensor) -> Tensor:
        return torch.zeros(*state.shape[:-1], 4)


def run() -> list[dict[str, object]]:
    """Env steps a second of the collector's two workers over those of one bare gymnasium loop, in turn."""
    policy = TensorDictModule(_Zeros(), in_keys=["state"], out_keys=["action"])
    envs = [partial(make_env, **OPTIONS, worker=worker) for worker in range(2)]
    collector = Collector(
        envs, policy, num_collectors=2, backend="process", sync=True, frames_per_batch=FRAMES, total_frames=-1
    )
    try:
        steps = iter(collector)
        next(steps)  # the workers' start
        bare = MetaWorld(**OPTIONS)
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(BATCHES):
            for job, kept in ((lambda: next(steps), rates[0]), (lambda: _bare_loop(bare), rates[1])):
                began = time.perf_counter()
                job()
                kept.append(FRAMES / (time.perf_counter() - began))
    finally:
        collector.shutdown()
    ours, plain = median(rates[0]), median(rates[1])
    return [
        {"name": "collector: two processes, state", "value": ours, "unit": "env steps/s", "target": ""},
        {"name": "collector: bare loop, one process, state", "value": plain, "unit": "env steps/s", "target": ""},
        {"name": "collector: two processes over bare loop", "value": ours / plain, "unit": "×", "target": "≥ 0.75"},
    ]


def _bare_loop(env: MetaWorld) -> None:
    action = np.zeros(4, np.float32)
    env.reset()
    for _ in range(FRAMES):
        if env.step(action)[3]:
            env.reset()
