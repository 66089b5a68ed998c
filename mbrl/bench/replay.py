"""Sampling from the replay, compared with numpy indexing of the same bytes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

from mbrl.replay.mirror import CPU, Placement
from mbrl.replay.replay import EpisodeBuffer
from mbrl.run_folder.schema import TensorType

EPISODES, STEPS, RESOLUTION, STACK, BATCH = 100, 100, 64, 3, 128
SEGMENTS, LENGTH = 16, 12
REPEATS = 15


def run() -> list[dict[str, object]]:
    """Time of numpy's indexing over that of the replay, for transitions with frame stacks and for segments."""
    with tempfile.TemporaryDirectory() as folder:
        buffer = filled_buffer(Path(folder))
        pixels = buffer.records["pixels"].numpy()

        rng = np.random.default_rng(0)

        def numpy_stacks() -> None:
            rows = rng.integers(STACK, len(pixels) - STACK - 4, BATCH)
            back = rows[:, None] + np.arange(1 - STACK, 1)
            pixels[back].reshape(BATCH, -1, RESOLUTION, RESOLUTION)
            pixels[back + 3].reshape(BATCH, -1, RESOLUTION, RESOLUTION)

        def numpy_segments() -> None:
            pixels[rng.integers(0, len(pixels) - LENGTH, SEGMENTS)[:, None] + np.arange(LENGTH)]

        transitions = _ratio(numpy_stacks, lambda: buffer.transitions(BATCH))
        segments = _ratio(numpy_segments, lambda: buffer.sequences(SEGMENTS, LENGTH))
    rows = [
        (f"replay: {BATCH} transitions, stacks of {STACK}", transitions),
        (f"replay: {SEGMENTS} segments of {LENGTH}", segments),
    ]
    return [{"name": name, "value": value, "unit": "× numpy", "target": "≥ 0.33"} for name, value in rows]


def filled_buffer(folder: Path, placement: Placement = "auto", run_device: torch.device = CPU) -> EpisodeBuffer:
    """A replay of frames in memory-mapped files; where its batches are drawn: see `mbrl.replay.mirror.mirror_for`."""
    flag = torch.zeros(EPISODES, STEPS + 1, 1, dtype=torch.bool)
    records = TensorDict(
        pixels=torch.randint(0, 256, (EPISODES, STEPS + 1, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8),
        action=torch.rand(EPISODES, STEPS + 1, 4),
        reward=torch.rand(EPISODES, STEPS + 1, 1),
        success=flag,
        terminated=flag.clone(),
        truncated=flag.clone(),
        batch_size=[EPISODES, STEPS + 1],
    )
    buffer = EpisodeBuffer(
        EPISODES * (STEPS + 1),
        frame_stack=STACK,
        directory=folder,
        fields=fields_of(records),
        device=placement,
        run_device=run_device,
    )
    buffer.extend(records)
    return buffer


def fields_of(records: TensorDictBase) -> dict[str, TensorType]:
    """Type and shape of each entry of records of episodes [N, R]."""
    return {key: TensorType(value.dtype, tuple(value.shape[2:])) for key, value in records.items()}


def _ratio(reference: Callable[[], object], ours: Callable[[], object]) -> float:
    """Median time of `reference` over that of `ours`, interleaved."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for job, durations in zip((reference, ours), times, strict=True):
            began = time.perf_counter()
            job()
            durations.append(time.perf_counter() - began)
    return median(times[0]) / median(times[1])
