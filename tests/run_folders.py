"""What two run folders are compared by."""

import json
from pathlib import Path
from typing import Any

from torchrl.checkpoint import CheckpointRotation


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "wall_time" and not k.startswith("time/")} for line in lines
    ]


def weights(run_dir: Path) -> dict[str, bytes]:
    """Every tensor of the newest checkpoint, but for the wall clock."""
    latest = CheckpointRotation(run_dir / "checkpoints", keep_last=2).latest()
    files = sorted(file for file in (latest / "components").rglob("*.memmap"))
    return {str(file.relative_to(latest)): file.read_bytes() for file in files}
