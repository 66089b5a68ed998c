"""Reads the metrics that a run logged while it trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mbrl.results.intervals import Floats
from mbrl.run_folder.plain_json import parse_json

MAX_POINTS = 60  # of a line; more rows are averaged in groups

Series = tuple[Floats, Floats]  # env steps, values


def metric_rows(folder: Path, prefixes: tuple[str, ...], leave_out: tuple[str, ...] = ()) -> Mapping[str, Floats]:
    """Metrics of metrics.jsonl: name -> [N, 2], env steps and value of each row that has it.

    Args:
        folder: of the run.
        prefixes: beginnings of the names to read.
        leave_out: names to leave out.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if file.is_file() else []
    for line in lines:
        try:
            row = parse_json(line)
            steps = float(row["env_steps"])
        except (ValueError, KeyError, TypeError):
            continue  # an incomplete line
        for name, value in row.items():
            if name.startswith(prefixes) and name not in leave_out and isinstance(value, int | float):
                rows.setdefault(name, []).append((steps, value))
    return {name: np.array(values) for name, values in rows.items()}


def averaged(rows: Floats) -> Series:
    """[N, 2] -> env steps and values, averaged over at most MAX_POINTS groups of consecutive rows."""
    groups = np.array_split(rows, min(MAX_POINTS, len(rows)))
    steps, values = np.array([group.mean(axis=0) for group in groups]).T
    return steps, values
