"""`mbrl compare`: how two runs differ in settings, code, packages, machine and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbrl.errors import UserError
from mbrl.results.curves import Curve, area, between, shared_range
from mbrl.results.report_data import ABSENT
from mbrl.results.run_metric import read_judged
from mbrl.run_folder.config import flatten, load_settings
from mbrl.run_folder.provenance import read_starts
from mbrl.run_folder.state import run_state

Line = tuple[str, str, str, str]  # kind (setting, origin or result), name, value of the one run, value of the other


def compare(one: Path, other: Path) -> list[Line]:
    """A line for each difference between two runs, then the results of both.

    Raises:
        FileNotFoundError: A folder is no run folder.
        UserError: The config.yaml of a run cannot be read.
    """
    return [*_settings(one, other), *_origins(one, other), *_results(one, other)]


def _settings(one: Path, other: Path) -> Iterator[Line]:
    settings = [load_settings(run) for run in (one, other)]
    yield from _differences("setting", settings[0], settings[1])


def _origins(one: Path, other: Path) -> Iterator[Line]:
    """Differences between the last start of each run."""
    starts = [{} if not (found := read_starts(run)) else flatten(found[-1]) for run in (one, other)]
    for start in starts:
        for key in ("time", "env_steps", "command"):  # time and steps always differ, and the command repeats settings
            start.pop(key, None)
    yield from _differences("origin", starts[0], starts[1])


def _differences(kind: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Line]:
    for key in sorted(one.keys() | other.keys()):
        if one.get(key, ABSENT) != other.get(key, ABSENT):
            yield kind, key, str(one.get(key, ABSENT)), str(other.get(key, ABSENT))


def _results(one: Path, other: Path) -> Iterator[Line]:
    curves = _curves(one, other)
    shared = shared_range(list(curves.values())) if curves else None
    results = [_measures(run, curves.get(run), shared) for run in (one, other)]
    for name in results[0] | results[1]:
        yield "result", name, _number(results[0].get(name)), _number(results[1].get(name))


def _curves(one: Path, other: Path) -> dict[Path, Curve]:
    """The learning curves of those of the two runs that were evaluated, both by one metric."""
    files = [run / "eval.csv" for run in (one, other)]
    try:
        found = read_judged([file for file in files if file.is_file()])
    except UserError:
        return {}
    return {curve.run: curve for curve in reversed(found) if curve.run is not None}  # the first is the mean over tasks


def _measures(run: Path, curve: Curve | None, shared: tuple[float, float] | None) -> dict[str, float]:
    """Results of a run by name. Highest and mean depend on its length: both runs count where both have data."""
    state = run_state(run)
    measures = {} if state is None else {"env steps": float(state.env_steps)}
    if curve is not None:
        measures[f"{curve.metric}, last"] = float(curve.success[-1])
    if curve is not None and shared is not None:
        common, until = between(curve, *shared), f"to {shared[1]:.0f} env steps"
        measures[f"{curve.metric}, highest {until}"] = float(common.success.max())
        measures[f"{curve.metric}, mean {until}"] = area(common)
    return measures


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
