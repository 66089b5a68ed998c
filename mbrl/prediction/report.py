"""What `mbrl predict` found, as files: table.json, table.csv and horizon.png."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mbrl.prediction.summary import Row
from mbrl.results.style import COLOURS, DASHES
from mbrl.run_folder.files import write_atomically

MARKERS = ("o", "s", "^", "x")
MARGIN = 1.3  # of a panel whose axis starts at 0 over its highest curve


class Panel(NamedTuple):
    """Curves by label, each the name of a row; those without a course are not drawn."""

    title: str
    axis: str
    curves: dict[str, str]
    from_zero: bool = False


PANELS = (
    Panel("What the model makes of actions", "PSNR (dB)", {
        "true actions": "psnr", "shuffled actions": "psnr_shuffled", "zero actions": "psnr_zero",
        "last context frame": "psnr_still",
    }),
    Panel("Structure", "SSIM", {"imagined": "ssim", "last context frame": "ssim_still"}),
    Panel("Perceptual distance", "LPIPS", {"imagined": "lpips", "last context frame": "lpips_still"}, True),
    Panel("Reward", "mean |error|", {"imagined": "reward_error"}, True),
    Panel("Gripper, read by a probe", "distance (cm)", {
        "imagined frames": "gripper_cm", "real frames (the probe's own error)": "gripper_cm_real",
    }, True),
)  # fmt: skip


def write_report(
    folder: Path, rows: Sequence[Row], left_out: Mapping[str, str], settings: Mapping[str, Any]
) -> list[Path]:
    """Write table.json, table.csv and horizon.png, each whole or not at all; the paths."""
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
    measures = {row.name: {"value": _known(row.value)} for row in rows}
    for row in rows:
        if row.curve is not None:
            measures[row.name]["by_step"] = [_known(value) for value in row.curve]
    return json.dumps({"settings": settings, "measures": measures, "left_out": left_out}, indent=1) + "\n"


def _known(value: float) -> Any:
    """JSON has no nan: null says that a rate had nothing to divide by."""
    return value if math.isfinite(value) else None


def _csv(rows: Sequence[Row]) -> str:
    """One line for each number; step "all" is the value over the horizon, step 1 its first imagined frame."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["measure", "step", "value"])
    for row in rows:
        steps = enumerate(row.curve or [], 1)
        writer.writerows([[row.name, "all", repr(row.value)], *([row.name, step, repr(v)] for step, v in steps)])
    return stream.getvalue()


def draw(rows: Sequence[Row]) -> Figure:
    """The measures along the horizon, one panel each."""
    curves = {row.name: row.curve for row in rows if row.curve is not None}
    panels = [panel for panel in PANELS if set(panel.curves.values()) & curves.keys()]
    columns = min(2 if len(panels) < 5 else 3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(0.5 + 3.9 * columns, 0.3 + 3.1 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, curves)
    return figure


def _draw(axis: Axes, panel: Panel, curves: Mapping[str, list[float]]) -> None:
    drawn = [(label, curves[name]) for label, name in panel.curves.items() if name in curves]
    for position, (label, curve) in enumerate(drawn):
        steps = range(1, len(curve) + 1)
        style = {"color": COLOURS[position], "linestyle": DASHES[position], "marker": MARKERS[position]}
        order = len(drawn) - position  # the first curve lies on top
        axis.plot(steps, curve, **style, linewidth=2, markersize=5, label=label, zorder=order + 1)  # type: ignore[arg-type]
    if panel.from_zero:
        axis.set_ylim(0, MARGIN * max(max(curve) for _, curve in drawn) or 1)
    axis.set_title(panel.title, fontsize=11)
    axis.set_xlabel("imagined step")
    axis.set_ylabel(panel.axis)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(color="#d8d8d8", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if len(drawn) > 1:
        axis.legend(frameon=False, fontsize=8, handlelength=3.5)
