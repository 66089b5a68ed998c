"""Style of the figures: readable with any colour vision and in print, and reproducible bit by bit."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter

from mbrl.results.curves import PUBLISHED
from mbrl.results.intervals import Floats
from mbrl.run_folder.files import write_atomically

Style = Mapping[str, Any]  # keyword arguments of a line

# Okabe and Ito (2008), safe for any colour vision, without the yellow that fades in print; then Paul Tol's wine and a
# grey, which differ from the others in lightness. Dashes tell lines apart where colours do not.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#888888")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
FORMATS = (".png", ".svg", ".pdf")
# of a legend: width of a line with the space around it, width of a letter, of a letter of its note, height of a row
LINE_INCHES, LETTER_INCHES, NOTE_LETTER_INCHES, ROW_INCHES = 0.6, 0.076, 0.066, 0.2


@contextmanager
def drawing() -> Iterator[None]:
    """Settings to make and save a figure under: no random identifiers in SVG, and `$` in a name is no formula."""
    with rc_context({"svg.hashsalt": "mbrl", "text.parse_math": False}):
        yield


def agent_styles(agents: Iterable[str]) -> dict[str, Style]:
    """The line style of each agent, to be passed to every figure so that an agent looks the same in all of them.

    Args:
        agents: every agent that any of the figures shows.

    Returns:
        Agent -> style, in the order of the legend: published agents come last, with thinner lines.
    """
    ordered = sorted(sorted(set(agents)), key=is_published)
    return {agent: _style(position, agent) for position, agent in enumerate(ordered)}


def is_published(agent: str) -> bool:
    return agent.endswith(PUBLISHED)


def _style(position: int, agent: str) -> Style:
    line = {"color": COLOURS[position % len(COLOURS)], "linestyle": DASHES[position % len(DASHES)]}
    return {**line, "linewidth": 1.2 if is_published(agent) else 2.2}


def grid(
    count: int, columns: int, panel: tuple[float, float], margin: tuple[float, float], sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows; width and height of a panel, and of what is beside all of them, in inches."""
    rows = -(-count // columns)
    size = (margin[0] + panel[0] * columns, margin[1] + panel[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten()
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def style_axes(axis: Axes) -> None:
    """Draw a light grid and no frame at the top and on the right."""
    axis.grid(color="#d8d8d8", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def small_panel(axis: Axes, title: str) -> None:
    """Give one of many panels over env steps its title, label and grid."""
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel("env steps", fontsize="small")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    style_axes(axis)


def draw_run(axis: Axes, steps: Floats, values: Floats, style: Style) -> None:
    """Draw a metric of one run in the style of its agent, thinner; a single value as a point."""
    axis.plot(steps, values, **{**style, "linewidth": 1.0}, alpha=0.8, marker="." if len(steps) == 1 else "")


def legend(
    figure: Figure, styles: Mapping[str, Style], labels: Mapping[str, str], columns: int, note: str = ""
) -> None:
    """Add a legend below the panels, and make the figure higher by its rows and as wide as its longest text.

    Args:
        figure: the figure.
        styles: agent -> style.
        labels: agent -> text, of the agents in the figure.
        columns: largest number of columns; fewer are used if the texts are long.
        note: a line above the texts that says what lines and areas are.
    """
    # matplotlib leaves out what begins with an underscore
    texts = {agent: f" {text}" if text.startswith("_") else text for agent, text in labels.items()}
    handles = [Line2D([], [], **style, label=texts[agent]) for agent, style in styles.items() if agent in labels]
    width = LINE_INCHES + LETTER_INCHES * max(len(text) for text in labels.values())
    figure.set_figwidth(max(figure.get_figwidth(), width, NOTE_LETTER_INCHES * len(note)))
    columns = max(1, min(len(handles), columns, int(figure.get_figwidth() / width)))
    rows = -(-len(handles) // columns) + bool(note)
    figure.set_figheight(figure.get_figheight() + ROW_INCHES * rows)
    titled = {"title": note, "title_fontsize": "small"} if note else {}
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, **titled)


def steps_formatter(x_label: str) -> Formatter:
    """Format steps as 20k and 1M, and hours as plain numbers."""
    return EngFormatter(sep="") if x_label.endswith("steps") else FuncFormatter(lambda value, _: f"{value:g}")


def save(figure: Figure, files: Sequence[Path]) -> None:
    """Write a figure to files whose suffixes are in FORMATS. The same data give the same bytes."""
    for file in files:
        picture = io.BytesIO()
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        with drawing():
            figure.savefig(picture, format=file.suffix[1:], dpi=150, metadata=undated.get(file.suffix))
        write_atomically(file, picture.getvalue())
