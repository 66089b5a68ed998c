"""Peak memory of one training step of the base model at batch 16; takes minutes on a CPU, so it runs on request alone.

Each step is a process of its own, whose peak is what the operating system says. It holds the whole model in float32,
and of the part that learns a gradient and two moments; the rest are activations and logits.
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
    "transformer": "transformer, logits where there is a loss",
    "all positions": "transformer, logits at all positions",
}


def peak_gigabytes(part: str, batch: int, name: str) -> float:
    """Peak of one step of that part; RuntimeError with the last line of what it said where the step fails."""
    command = [sys.executable, "-m", "mbrl.bench._step_memory", part, str(batch), name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        killed = f"it was ended by signal {-done.returncode}; this machine may have too little memory"
        error_lines = done.stderr.strip().splitlines() or [killed]
        raise RuntimeError(f"the {part} step at batch {batch} failed: {error_lines[-1]}")
    return int(done.stdout.split()[-1]) / 1e9


def run() -> Iterator[Row]:
    """Peaks of the base model's steps."""
    for part, name in tqdm(PARTS.items(), desc="memory", unit="step", leave=False):
        yield row(f"base, batch {BATCH}: {name}", peak_gigabytes(part, BATCH, BASE), "GB peak")
