"""`mbrl compare`: what differs between two runs, in settings, code, packages, machine and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbrl.errors import UserError
from mbrl.results.curves import Curve, area, read_curves
from mbrl.run_folder.config import flat, load_settings
from mbrl.run_folder.provenance import read_starts
from mbrl.run_folder.state import run_state

Line = tuple[str, str, str, str]  # what kind, which, there, here
ABSENT = "–"


def compare(one: Path, other: Path) -> list[Line]:
    """A line for each thing that differs, and the results of both.

    Raises:
        FileNotFoundError: a folder is no run's. ValueError: its config.yaml cannot be read.
    """
    return [*_settings(one, other), *_origin(one, other), *_results(one, other)]


def _settings(one: Path, other: Path) -> Iterator[Line]:
    settings = [load_settings(run) for run in (one, other)]
    yield from _different("setting", settings[0], settings[1])


def _origin(one: Path, other: Path) -> Iterator[Line]:
    """Of the last start of each."""
    starts = [{} if not (found := read_starts(run)) else flat(found[-1]) for run in (one, other)]
    for start in starts:
        for key in ("time", "env_steps", "command"):  # these always do, or the settings say it
            start.pop(key, None)
    yield from _different("origin", starts[0], starts[1])


def _different(kind: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Line]:
    for key in sorted(one.keys() | other.keys()):
        if one.get(key, ABSENT) != other.get(key, ABSENT):
            yield kind, key, str(one.get(key, ABSENT)), str(other.get(key, ABSENT))


def _results(one: Path, other: Path) -> Iterator[Line]:
    there, here = _measured(one), _measured(other)
    for name in there:
        yield "result", name, _number(there[name]), _number(here[name])


def _measured(run: Path) -> dict[str, float | None]:
    state = run_state(run)
    curve = _curve(run)
    return {
        "env steps": None if state is None else float(state.env_steps),
        "success, last": None if curve is None else float(curve.success[-1]),
        "success, highest": None if curve is None else float(curve.success.max()),
        "success, mean over env steps": None if curve is None else area(curve),
    }


def _curve(run: Path) -> Curve | None:
    try:
        return read_curves([run / "eval.csv"])[0]
    except (FileNotFoundError, UserError):
        return None  # it has not been evaluated yet


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}" if value < 1000 else f"{value:.0f}"
