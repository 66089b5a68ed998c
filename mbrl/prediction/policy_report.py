"""The table, the JSON and the figure of policies ranked in a world model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mbrl.prediction.policies import PolicyRanking
from mbrl.prediction.policy_scores import FEW, Correlation, Score, outcomes
from mbrl.results.style import COLOURS, drawing, save, style_axes
from mbrl.run_folder.files import csv_text, write_atomically
from mbrl.run_folder.plain_json import finite_or_none

UNKNOWN = "–"
HEADINGS = (
    "",
    "checkpoint",
    "env steps",
    "real return",
    "imagined",
    "real success",
    "imagined",
    "hallucinated",
    "missed",
)
COLUMNS = ("run", "env_steps", "episodes", *Score._fields)


def table(ranking: PolicyRanking) -> list[list[str]]:
    """The scores of each checkpoint as rows of text, with the headings first."""
    rows = [list(HEADINGS)]
    for number, (each, found) in enumerate(zip(ranking.checkpoints, ranking.scores, strict=True), 1):
        returns = (
            _with_error(found.real_return, found.real_return_error),
            _with_error(found.imagined_return, found.imagined_return_error),
        )
        shares = (found.real_success, found.imagined_success, found.hallucinated, found.missed)
        rows.append([str(number), each.name, str(each.env_steps), *returns, *(_share(value) for value in shares)])
    return rows


def _with_error(value: float, error: float) -> str:
    return f"{value:.0f}" if math.isnan(error) else f"{value:.0f} ± {error:.0f}"


def _share(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.2f}"


def lines(ranking: PolicyRanking) -> list[str]:
    """Notes below the table: its findings and how they were measured, one sentence each."""
    rule, protocol, count = ranking.rule, ranking.protocol, len(ranking.scores)
    found = [
        _correlation("return", ranking.returns),
        _correlation("success", ranking.success),
    ]
    if rule.threshold is None:
        found.append(f"imagined success: not known ({rule.reason})")
    else:
        found.append(
            f"imagined success: the highest reward of an episode is {rule.threshold:.4g} or more; of the real episodes "
            f"this finds {rule.recall:.0%} of the successes and takes {rule.false_alarms:.0%} of the failures for one"
        )
        found.append(_hallucinated(ranking, rule.threshold))
    if count < FEW:
        found.append(f"{count} checkpoints are few for a rank correlation: see its interval")
    episodes = len(ranking.episodes[0].success)
    found.append(f"{episodes} episodes of each, {protocol.horizon} imagined steps, goals of seed {protocol.seed}")
    return found


def _correlation(name: str, found: Correlation) -> str:
    if found.reason:
        return f"rank correlation of {name}: not known ({found.reason})"
    interval = "too few or too many ties for an interval"
    if not math.isnan(found.low):
        interval = f"95 % {found.low:.2f} to {found.high:.2f}"
    return f"rank correlation of {name}: {found.value:.2f} ({interval}, {found.checkpoints} checkpoints)"


def _hallucinated(ranking: PolicyRanking, threshold: float) -> str:
    """The share over all checkpoints, beside what guessing would give."""
    counts = [outcomes(each, threshold) for each in ranking.episodes]
    hits, false = sum(each.hits for each in counts), sum(each.false_alarms for each in counts)
    if not hits + false:
        return "hallucinated: no episode succeeds in imagination"
    return f"hallucinated: {false} of {hits + false} imagined successes ({false / (hits + false):.0%}) fail in reality"


def as_json(ranking: PolicyRanking) -> dict[str, Any]:
    """Everything as plain values; null for what is not known."""
    scores = [dict(zip(COLUMNS, row, strict=True)) for row in _rows(ranking)]
    return {
        "checkpoints": [{key: finite_or_none(value) for key, value in row.items()} for row in scores],
        "return_rank_correlation": _plain(ranking.returns),
        "success_rank_correlation": _plain(ranking.success),
        "success_rule": _plain(ranking.rule),
        "episodes": ranking.protocol.episodes,
        "seed": ranking.protocol.seed,
        "horizon": ranking.protocol.horizon,
    }


def _rows(ranking: PolicyRanking) -> list[list[Any]]:
    count = len(ranking.episodes[0].success)
    pairs = zip(ranking.checkpoints, ranking.scores, strict=True)
    return [[each.name, each.env_steps, count, *found] for each, found in pairs]


def _plain(values: Any) -> dict[str, Any]:
    return {key: finite_or_none(value) for key, value in values._asdict().items()}


def write_report(ranking: PolicyRanking, stem: Path, suffixes: Sequence[str]) -> list[Path]:
    """Write the figure with each suffix, and the table beside it as CSV with empty cells for what is not known.

    Returns:
        The paths of the figures.
    """
    rows = [["" if finite_or_none(value) is None else _rounded(value) for value in row] for row in _rows(ranking)]
    pictures = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    save(draw(ranking), pictures)
    write_atomically(stem.with_name(f"{stem.name}.csv"), csv_text(COLUMNS, rows))
    return pictures


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def draw(ranking: PolicyRanking) -> Figure:
    """Imagined against real return and success of each checkpoint, by its number in the table; outcomes of episodes."""
    known = ranking.rule.threshold is not None
    with drawing():
        figure = Figure(figsize=(11.5 if known else 4.2, 3.9), layout="constrained")
        axes = figure.subplots(1, 3 if known else 1, squeeze=False)[0]
        scores = ranking.scores
        real, imagined = [each.real_return for each in scores], [each.imagined_return for each in scores]
        errors = [each.real_return_error for each in scores], [each.imagined_return_error for each in scores]
        _scatter(axes[0], "return", ranking.returns, real, imagined, errors)
        if known:
            real, imagined = [each.real_success for each in scores], [each.imagined_success for each in scores]
            _scatter(axes[1], "success rate", ranking.success, real, imagined)
            _draw_outcomes(axes[2], ranking)
    return figure


def _scatter(
    axis: Axes,
    name: str,
    found: Correlation,
    real: Sequence[float],
    imagined: Sequence[float],
    errors: tuple[Sequence[float], Sequence[float]] | None = None,
) -> None:
    if errors is not None:
        axis.errorbar(real, imagined, errors[1], errors[0], fmt="none", ecolor="#b0b0b0", elinewidth=1, zorder=1)
    axis.scatter(real, imagined, color=COLOURS[0], s=26, zorder=2)
    for number, place in enumerate(zip(real, imagined, strict=True), 1):
        axis.annotate(str(number), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    low, high = min(*real, *imagined), max(*real, *imagined)
    axis.plot([low, high], [low, high], color="#888888", linewidth=1, linestyle="--", zorder=0)
    axis.set_xlabel(f"real {name}")
    axis.set_ylabel(f"imagined {name}")
    title = "rank correlation " + (UNKNOWN if found.reason else f"{found.value:.2f}")
    interval = "" if math.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
    axis.set_title(title + interval, fontsize="medium")
    style_axes(axis)


def _draw_outcomes(axis: Axes, ranking: PolicyRanking) -> None:
    """Episodes of each checkpoint by what became of them in the two worlds."""
    threshold = ranking.rule.threshold
    assert threshold is not None
    counts = [outcomes(each, threshold) for each in ranking.episodes]
    parts: dict[str, Callable[[Any], int]] = {
        "both": lambda each: each.hits,
        "imagined alone (hallucinated)": lambda each: each.false_alarms,
        "real alone (missed)": lambda each: each.misses,
    }
    places, left = range(1, len(counts) + 1), [0] * len(counts)
    for colour, (label, part) in zip((COLOURS[2], COLOURS[1], COLOURS[8]), parts.items(), strict=True):
        widths = [part(each) for each in counts]
        axis.barh(places, widths, left=left, color=colour, label=label, height=0.7)
        left = [done + width for done, width in zip(left, widths, strict=True)]
    axis.set_xlim(0, len(ranking.episodes[0].success))
    axis.set_ylim(len(counts) + 0.6, 0.4)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("checkpoint")
    axis.set_xlabel("episodes")
    axis.set_title("episodes that succeed", fontsize="medium")
    style_axes(axis)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False, fontsize=8, ncols=2)
