"""The tables that `mbrl predict` prints: measures along the horizon, rewards by their size, the ranking of plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mbrl.prediction.measures import describe
from mbrl.prediction.ranking import SAMPLES
from mbrl.prediction.summary import Row

Table = list[list[str]]

REWARD, RANK = "reward_", "plan_rank_"  # names of rows start with these
LEVEL_NAMES = {"": "all", "low": "below 2", "middle": "2 to 8", "high": "8 and above"}
FRAMES = {"": "imagined frames", "_observed": "real frames"}  # ending of a row's name -> heading
SAMPLED = {"": "one sample", "_mean": f"mean of {SAMPLES}", "_greedy": "greedy"}
PLANS = {"random": "random actions", "policy": "the policy's actions, exploring"}
NONE = "–"


def tables(rows: Sequence[Row]) -> list[Table]:
    """Tables of text, each with its headings in the first row."""
    named = {row.name: row for row in rows}
    main = [row for row in rows if row.name == "reward_error" or not row.name.startswith((REWARD, RANK))]
    found = [_along_horizon(main)]
    if "reward_steps" in named:
        found.append(_rewards(named))
    if any(name.startswith(RANK) for name in named):
        found.append(_ranks(named))
    return found


def _along_horizon(rows: Sequence[Row]) -> Table:
    """Measures with their value over all steps and, where they have one, at the first, middle and last step."""
    length = max(len(row.curve or []) for row in rows)
    steps = sorted({1, (length + 1) // 2, length})
    table = [["measure", "all steps", *(f"step {step}" for step in steps), ""]]
    for row in rows:
        cells = [row.curve[step - 1] for step in steps] if row.curve else []
        numbers = [format(value, ".4g") for value in (row.value, *cells)]
        table.append([row.name, *numbers, *[""] * (len(steps) - len(cells)), describe(row.name)])
    return table


def _rewards(named: Mapping[str, Row]) -> Table:
    """Rewards where the true reward is low, middle or high."""
    lines = {"steps": ("steps", ""), "true rewards, mean": ("true", "")}
    for ending, frames in FRAMES.items():
        for measure in ("mean", "error", "correlation"):
            lines[f"on {frames}, {measure}"] = (measure, ending)
    table = [["rewards", *LEVEL_NAMES.values()]]
    for heading, (measure, ending) in lines.items():
        levels = (f"_{level}" if level else "" for level in LEVEL_NAMES)
        cells = [named.get(f"{REWARD}{measure}{level}{ending}") for level in levels]
        if any(cells):
            table.append([heading, *(NONE if row is None else format(row.value, ".3g") for row in cells)])
    return table


def _ranks(named: Mapping[str, Row]) -> Table:
    """Rank correlations of plans, with their standard errors."""
    table = [["rank correlation of plans from one start", *SAMPLED.values()]]
    for kind, heading in PLANS.items():
        cells = [named.get(f"{RANK}{kind}{ending}") for ending in SAMPLED]
        if any(cells):
            shown = (NONE if row is None else f"{row.value:.2f} ± {row.standard_error:.2f}" for row in cells)
            table.append([heading, *shown])
    return table
