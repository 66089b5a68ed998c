"""`mbrl plot`: learning curves from files, success rate over env steps, one panel per task."""

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from mbrl.curves import PUBLISHED, Band, Curve, published, read_curves, summarise

# Okabe and Ito's colours (2008), told apart with any colour vision, without the yellow that fades in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
FORMATS = (".png", ".svg", ".pdf")
FEW_SEEDS = 5  # below this an interval says little: each run is shown instead
COLUMNS = 3


def plot(runs: Sequence[Path], output: Path, reference: Path | None = None) -> Path:
    """Draws the runs' learning curves into `output`, and the drawn data into a CSV beside it.

    Below five seeds each run is a thin line beside their mean; from five on, the mean with its 95 % interval.

    Args:
        runs: run folders, folders of them, or CSV files of step,success,seed (published curves).
        output: .png, .svg or .pdf.
        reference: a folder AGENT/TASK.csv of published curves, whose means are drawn as far as the runs go.

    Returns:
        output.

    Raises:
        ValueError: another suffix, no run that could be drawn, or an input that the CSV would overwrite.
        FileNotFoundError: a path that does not exist.
    """
    if output.suffix not in FORMATS:
        raise ValueError(f"cannot draw {output}: the name must end in {', '.join(FORMATS)}")
    data = output.with_suffix(".csv")
    if data.resolve() in [run.resolve() for run in runs]:
        raise ValueError(f"the drawn data would overwrite {data}: choose another name for {output}")
    curves = read_curves(runs)
    panels = _grouped([*curves, *(published(reference, curves) if reference else [])])
    agents = sorted({agent for panel in panels.values() for agent in panel})
    agents.sort(key=_is_published)  # own curves have the first colours
    styles = {agent: _style(position, agent) for position, agent in enumerate(agents)}
    output.parent.mkdir(parents=True, exist_ok=True)
    figure = _figure(panels, styles)
    # no date and no random names in the file: the same data give the same picture, to the bit
    with rc_context({"svg.hashsalt": "mbrl"}):
        figure.savefig(output, dpi=150, metadata={"Date": None} if output.suffix == ".svg" else None)
    _write_data(panels, data)
    return output


def _grouped(curves: Sequence[Curve]) -> dict[str, dict[str, list[Curve]]]:
    """Task -> agent -> its runs."""
    panels: dict[str, dict[str, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda curve: (curve.task, curve.agent, curve.seed)):
        panels.setdefault(curve.task, {}).setdefault(curve.agent, []).append(curve)
    return panels


def _is_published(agent: str) -> bool:
    return agent.endswith(PUBLISHED)


def _style(position: int, agent: str) -> dict[str, object]:
    style = {"color": COLOURS[position % len(COLOURS)], "linestyle": DASHES[position % len(DASHES)]}
    return {**style, "linewidth": 1.2 if _is_published(agent) else 2.2}


def _figure(panels: dict[str, dict[str, list[Curve]]], styles: dict[str, dict[str, object]]) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 + 4.0 * columns, 0.9 + 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (task, agents) in zip(axes, panels.items(), strict=False):
        for agent, curves in agents.items():
            _draw(axis, curves, styles[agent], each=not _is_published(agent))
        _dress(axis, task)
    seeds = {
        agent: sorted({len(agents[agent]) for agents in panels.values() if agent in agents})
        for agent in styles
    }
    handles = [
        Line2D([], [], **style, label=f"{agent} ({_seeds(seeds[agent])})")  # type: ignore[arg-type]
        for agent, style in styles.items()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), columns + 1), frameon=False
    )
    return figure


def _draw(axis: Axes, curves: Sequence[Curve], style: dict[str, object], *, each: bool) -> None:
    band = summarise(curves)
    few = len(curves) < FEW_SEEDS
    if few and each and (len(curves) > 1 or band is None):
        for curve in curves:
            axis.plot(curve.steps, curve.success, color=style["color"], linewidth=0.8, alpha=0.6)
    if band is None:
        return
    if not few:
        axis.fill_between(band.steps, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)
    marker = "o" if len(band.steps) == 1 else ""
    axis.plot(band.steps, band.mean, **style, marker=marker)  # type: ignore[arg-type]


def _dress(axis: Axes, task: str) -> None:
    axis.set_title(task)
    axis.set_xlabel("env steps")
    axis.set_ylabel("success rate")
    axis.set_ylim(-0.03, 1.03)
    axis.tick_params(labelleft=True)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(color="#d8d8d8", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _seeds(counts: Sequence[int]) -> str:
    return (
        f"{counts[0]} seed{'s' * (counts[0] > 1)}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]} seeds"
    )


def _write_data(panels: dict[str, dict[str, list[Curve]]], file: Path) -> None:
    """The drawn lines: one row per run and step, and per mean and step with its interval."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["task", "agent", "line", "step", "success", "low", "high"])
        for task, agents in panels.items():
            for agent, curves in agents.items():
                for curve in curves:
                    points = zip(curve.steps, curve.success, strict=True)
                    writer.writerows(
                        [task, agent, f"seed {curve.seed}", f"{x:.12g}", f"{y:.4g}", "", ""]
                        for x, y in points
                    )
                writer.writerows([task, agent, "mean", *row] for row in _band_rows(summarise(curves)))


def _band_rows(band: Band | None) -> list[list[str]]:
    if band is None:
        return []
    columns = zip(band.steps, band.mean, band.low, band.high, strict=True)
    return [[f"{step:.12g}", *(f"{value:.4g}" for value in values)] for step, *values in columns]
