"""Peak memory of one training step of the base model at batch 16. It takes minutes on a CPU and runs on request only.

Each step runs in a process of its own, whose peak the operating system reports. It holds the whole model in float32,
the gradients and two moments of the part that is trained, and activations and logits.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from tqdm import tqdm

from mbrl.bench import Row
from mbrl.bench._machine import row
from mbrl.bench._models import BASE

BATCH = 16
PARTS = {
    "tokenizer": "tokenizer",
    "transformer": "transformer, logits at positions with a loss",
    "all positions": "transformer, logits at all positions",
}


def peak_gigabytes(part: str, batch: int, name: str) -> float:
    """Peak memory of one step in GB.

    Args:
        part: a key of PARTS.
        batch: batch size.
        name: a file in configs/worldmodel.

    Raises:
        RuntimeError: the step failed; with the last line of its stderr.
    """
    command = [sys.executable, "-m", "mbrl.bench._step_memory", part, str(batch), name]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        killed = f"it was ended by signal {-done.returncode}; this machine may have too little memory"
        error_lines = done.stderr.strip().splitlines() or [killed]
        raise RuntimeError(f"the {part} step at batch {batch} failed: {error_lines[-1]}")
    return int(done.stdout.split()[-1]) / 1e9


def run() -> Iterator[Row]:
    """Peak memory of each step of the base model."""
    for part, name in tqdm(PARTS.items(), desc="memory", unit="step", leave=False):
        yield row(f"base, batch {BATCH}: {name}", peak_gigabytes(part, BATCH, BASE), "GB peak")
