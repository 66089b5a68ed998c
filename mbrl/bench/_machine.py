"""Throughput and bandwidth of this machine, and FLOPs and time of a call: the parts of a lower bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mbrl.bench import Row

MEASURED_SECONDS = 0.3  # seconds over which a rate is measured
COPY_BYTES = 2**26  # bytes of a copy, more than the caches of a processor hold
# Groups of operators in a profile, by the start of their names. All others are small operations.
GROUPS = {
    "weight matmuls": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot_product"),
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution_backward"),
}


def fastest_seconds(call: Callable[[], object]) -> float:
    """Seconds of the fastest of many calls, after one call to warm up."""
    call()
    fastest, until = float("inf"), time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def median_seconds(
    calls: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each call. The calls are interleaved, after one round to warm up.

    Args:
        calls: what is timed.
        repeats: rounds.
        clock: wall-clock time, or `time.process_time` for calls that keep one core busy.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, durations in zip(calls, times, strict=True):
            began = clock()
            call()
            durations.append(clock() - began)
    return [median(durations[1:]) for durations in times]


def matmul_rate(dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
    """FLOP/s of a product of [rows, inner] and the transpose of [columns, inner], with its inputs in the cache."""
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    return 2 * rows * inner * columns / fastest_seconds(lambda: torch.nn.functional.linear(left, right))


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy between blocks larger than the caches."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / fastest_seconds(lambda: target.copy_(source))


def count_flops(call: Callable[[], object], only: tuple[str, ...] = ()) -> int:
    """FLOPs of the matrix products and convolutions of a call.

    Args:
        call: what is counted.
        only: names of operators, such as "mm"; empty for all.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if not only or str(operator).split(".")[-1] in only)


def time_shares(call: Callable[[], object]) -> dict[str, float]:
    """Share of a call's CPU time in each of GROUPS and in small operations, each in [0, 1]."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        call()
    durations = dict.fromkeys(GROUPS, 0.0)
    total = 0.0
    for event in recorded.key_averages():
        total += event.self_cpu_time_total
        for group, operators in GROUPS.items():
            if event.key.startswith(operators):
                durations[group] += event.self_cpu_time_total
    durations["small operations"] = total - sum(durations.values())
    return {group: time / total for group, time in durations.items()}


def row(name: str, value: float, unit: str, target: str = "") -> Row:
    """A row of a benchmark's table."""
    return {"name": name, "value": float(value), "unit": unit, "target": target}
