"""Where things lie in a run folder."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"  # there from a run's first moment on
CHECKPOINTS = "checkpoints"  # a folder
TRAINED_ON = "trained_on.json"  # of a world model that was trained without a run, the checksums of its episodes
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")


def checkpoint_name(step: int) -> str:
    """The name of the folder that holds the checkpoint of a step."""
    return f"checkpoint-{step:012d}"


def checkpoint_paths(directory: Path) -> dict[int, Path]:
    """Paths that are named as checkpoints, by their step, in the order of steps; some may be files."""
    found = {
        int(match[1]): path for path in directory.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))
    }
    return {step: found[step] for step in sorted(found)}


def checkpoint_folders(directory: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their step, in the order of steps; they may be damaged."""
    return {step: path for step, path in checkpoint_paths(directory).items() if path.is_dir()}
