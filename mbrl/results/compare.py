"""`mbrl compare`: how two runs differ in settings, code, packages, machine and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbrl.errors import UserError
from mbrl.results.curves import Curve, area
from mbrl.results.read_curves import read_curves
from mbrl.results.report_data import ABSENT
from mbrl.results.run_metric import judged_metric
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
    curves = [_curve(run) for run in (one, other)]
    metric = judged_metric([curve for curve in curves if curve is not None])
    if metric != "success":
        curves = [_curve(run, metric) for run in (one, other)]
    results = _measures(one, curves[0], metric), _measures(other, curves[1], metric)
    for name in results[0]:
        yield "result", name, _number(results[0][name]), _number(results[1][name])


def _measures(run: Path, curve: Curve | None, metric: str) -> dict[str, float | None]:
    state = run_state(run)
    return {
        "env steps": None if state is None else float(state.env_steps),
        f"{metric}, last": None if curve is None else float(curve.success[-1]),
        f"{metric}, highest": None if curve is None else float(curve.success.max()),
        f"{metric}, mean over env steps": None if curve is None else area(curve),
    }


def _curve(run: Path, metric: str = "success") -> Curve | None:
    try:
        return read_curves([run / "eval.csv"], metric=metric)[0]
    except (FileNotFoundError, UserError):
        return None  # not evaluated yet


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
