"""Write the results of `mbrl predict`: table.json, table.csv and horizon.png."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mbrl.prediction.summary import Row
from mbrl.results.style import COLOURS, DASHES, grid, style_axes
from mbrl.run_folder.files import csv_text, write_atomically
from mbrl.run_folder.plain_json import finite_or_none

MARKERS = ("o", "s", "^", "x")
MARGIN = 1.3  # height of a panel that starts at 0, over its highest value


class Panel(NamedTuple):
    """A panel of the figure.

    Attributes:
        title: title.
        axis: label of the y-axis.
        curves: label of a line -> name of its row. Rows without a curve are not drawn.
        from_zero: whether the y-axis starts at 0.
    """

    title: str
    axis: str
    curves: dict[str, str]
    from_zero: bool = False


PANELS = (
    Panel("Frames, under true and other actions", "PSNR (dB)", {
        "true actions": "psnr", "shuffled actions": "psnr_shuffled", "zero actions": "psnr_zero",
        "last context frame": "psnr_still",
    }),
    Panel("Pixels that move", "PSNR (dB)", {
        "imagined": "psnr_moving", "reconstructed": "psnr_moving_reconstructed",
        "last context frame": "psnr_moving_still",
    }),
    Panel("Structural similarity", "SSIM", {"imagined": "ssim", "last context frame": "ssim_still"}),
    Panel("Perceptual distance", "LPIPS", {"imagined": "lpips", "last context frame": "lpips_still"}, True),
    Panel("Reward", "mean absolute error", {"imagined": "reward_error"}, True),
    Panel("Gripper position, read by a probe", "distance (cm)", {
        "imagined frames": "gripper_cm", "real frames (error of the probe)": "gripper_cm_real",
    }, True),
)  # fmt: skip


def write_report(
    folder: Path, rows: Sequence[Row], left_out: Mapping[str, str], settings: Mapping[str, Any]
) -> list[Path]:
    """Write table.json, table.csv and horizon.png atomically, and return their paths."""
    picture = io.BytesIO()
    draw(rows).savefig(picture, dpi=150, format="png")
    contents = {
        "table.json": _json(rows, left_out, settings).encode(),
        "table.csv": _csv(rows).encode(),
        "horizon.png": picture.getvalue(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def _json(rows: Sequence[Row], left_out: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    measures = {row.name: {"value": finite_or_none(row.value)} for row in rows}
    for row in rows:
        if row.curve is not None:
            measures[row.name]["by_step"] = [finite_or_none(value) for value in row.curve]
        if row.standard_error is not None:
            measures[row.name]["standard_error"] = finite_or_none(row.standard_error)
    return json.dumps({"settings": settings, "measures": measures, "left_out": left_out}, indent=1) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    """One line for each number. Step "all" is the value over the horizon, and step 1 is the first imagined frame.

    The standard error of a value has the step "standard error".
    """
    cells: list[list[Any]] = []
    for row in rows:
        cells += [[row.name, "all", repr(row.value)]]
        cells += ([row.name, step, repr(value)] for step, value in enumerate(row.curve or [], 1))
        if row.standard_error is not None:
            cells += [[row.name, "standard error", repr(row.standard_error)]]
    return csv_text(["measure", "step", "value"], cells)


def draw(rows: Sequence[Row]) -> Figure:
    """Draw the measures along the horizon, one panel for each entry of PANELS that has a curve."""
    curves = {row.name: row.curve for row in rows if row.curve is not None}
    panels = [panel for panel in PANELS if set(panel.curves.values()) & curves.keys()]
    columns = min(2 if len(panels) < 5 else 3, len(panels))
    figure, axes = grid(len(panels), columns, (3.9, 3.1), (0.5, 0.3))
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel, curves)
    return figure


def _draw(axis: Axes, panel: Panel, curves: Mapping[str, list[float]]) -> None:
    drawn = [(label, curves[name]) for label, name in panel.curves.items() if name in curves]
    for position, (label, curve) in enumerate(drawn):
        steps = range(1, len(curve) + 1)
        style = {"color": COLOURS[position], "linestyle": DASHES[position], "marker": MARKERS[position]}
        order = len(drawn) - position  # the first curve is drawn on top
        axis.plot(steps, curve, **style, linewidth=2, markersize=5, label=label, zorder=order + 1)  # type: ignore[arg-type]
    if panel.from_zero:
        axis.set_ylim(0, MARGIN * max(max(curve) for _, curve in drawn) or 1)
    axis.set_title(panel.title, fontsize=11)
    axis.set_xlabel("imagined step")
    axis.set_ylabel(panel.axis)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axis)
    if len(drawn) > 1:
        axis.legend(frameon=False, fontsize=8, handlelength=3.5)
