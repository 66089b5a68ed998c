"""How the pictures look: told apart with any colour vision and in print, the same to the bit for the same data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter

from mbrl.results.curves import PUBLISHED

Style = Mapping[str, object]  # of a line

# Okabe and Ito's colours (2008), told apart with any colour vision, without the yellow that fades in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
FORMATS = (".png", ".svg", ".pdf")
LINE_INCHES, LETTER_INCHES = 0.6, 0.076  # in a legend: the line with the space about it, a letter


def styles_of(agents: Iterable[str], drawn: Collection[str] | None = None) -> dict[str, Style]:
    """Agent -> how its lines are drawn; own agents come first, and published ones are thinner.

    Args:
        drawn: those that a figure has, where others beside it have more: an agent looks the same in all of them.
    """
    ordered = sorted(sorted(set(agents)), key=is_published)
    styles = {agent: _style(position, agent) for position, agent in enumerate(ordered)}
    return styles if drawn is None else {agent: style for agent, style in styles.items() if agent in drawn}


def is_published(agent: str) -> bool:
    return agent.endswith(PUBLISHED)


def _style(position: int, agent: str) -> Style:
    line = {"color": COLOURS[position % len(COLOURS)], "linestyle": DASHES[position % len(DASHES)]}
    return {**line, "linewidth": 1.2 if is_published(agent) else 2.2}


def dress(axis: Axes) -> None:
    axis.grid(color="#d8d8d8", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, styles: Mapping[str, Style], labels: Mapping[str, str], columns: int) -> None:
    """Below the panels, where it hides no curve, in so many columns or as many as have room."""
    handles = [Line2D([], [], **style, label=labels[agent]) for agent, style in styles.items()]  # type: ignore[arg-type]
    width = LINE_INCHES + LETTER_INCHES * max(len(labels[agent]) for agent in styles)
    columns = max(1, min(len(handles), columns, int(figure.get_figwidth() / width)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def steps_formatter(x_label: str) -> Formatter:
    """20k and 1M of steps; hours as they are."""
    return EngFormatter(sep="") if x_label.endswith("steps") else FuncFormatter(lambda value, _: f"{value:g}")


def save(figure: Figure, files: Sequence[Path]) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        # no date and no random names in the file: the same data give the same picture, to the bit
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        with rc_context({"svg.hashsalt": "mbrl"}):
            figure.savefig(file, dpi=150, metadata=undated.get(file.suffix))
