"""Training steps of iVideoGPT at nano size, compared with a lower bound.

Lower bound: FLOPs of the matrix products and convolutions, forward and backward, at the throughput of large products in
their type, plus the optimiser's pass over the weights (reads weights, gradients and two moments, writes weights and
moments) at the bandwidth of a copy. The rest of a step is operations on feature maps and activations, which only move
memory, and convolutions of few channels, whose backward passes reach at most half of the throughput.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict

from mbrl.bench import Row
from mbrl.bench._machine import copy_bandwidth, count_flops, matmul_rate, median_seconds, row, time_shares
from mbrl.bench._models import build, segments
from worldmodel.ivideogpt.model import IVideoGPT

BATCHES, REPEATS = (8, 16), 7  # 8 is what the agent uses
LARGE_SIDE = 1024  # side of the matrices with which the throughput is measured
OPTIMISER_BYTES = 7 * 4  # bytes for each weight: four numbers read, three written


def step(model: IVideoGPT, part: str, batch: TensorDict) -> None:
    """One update that trains only `part`, tokenizer or transformer."""
    model.updates.fill_(0 if part == "tokenizer" else model.plan.tokenizer_updates)
    model.update(batch)


def lower_bound_seconds(model: IVideoGPT, part: str, call: Callable[[], object]) -> float:
    """Lower bound in seconds of a step: its FLOPs, then the optimiser's pass over the weights."""
    weights = sum(p.numel() for group in model.optimizers[part].param_groups for p in group["params"])
    rate = matmul_rate(model.dtype, LARGE_SIDE, LARGE_SIDE, LARGE_SIDE)
    return count_flops(call) / rate + OPTIMISER_BYTES * weights / copy_bandwidth()


@torch.enable_grad()
def run() -> list[Row]:
    """Steps per second of both parts at both batch sizes, their lower bounds, and the shares of their time."""
    model = build()
    cases = [(part, batch) for part in ("tokenizer", "transformer") for batch in BATCHES]
    steps = [partial(step, model, part, segments(model, batch)) for part, batch in cases]
    rows = []
    for (part, batch), call, measured in zip(cases, steps, median_seconds(steps, REPEATS), strict=True):
        lower_bound = lower_bound_seconds(model, part, call)
        name = f"{part}, batch {batch}"
        rows += [
            row(f"training: {name}", 1 / measured, "steps/s"),
            row(f"training: {name}, lower bound", 1 / lower_bound, "steps/s"),
            row(f"training: {name}, step over its lower bound", measured / lower_bound, "×"),
        ]
        if batch == max(BATCHES):
            parts = time_shares(call).items()
            rows += [row(f"share of a {part} step: {group}", 100 * share, "%") for group, share in parts]
    return rows
