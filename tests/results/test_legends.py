"""What the figures say of their own lines, bands and bars."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mbrl.results.aggregate_figure import aggregate_figure
from mbrl.results.aggregates import aggregate
from mbrl.results.curve_figure import curve_figure
from mbrl.results.curves import PUBLISHED, Curve
from mbrl.results.style import agent_styles

STEPS = np.array([0.0, 10.0, 20.0])
LINES, BAND = "thin: one seed · thick: mean", "band: 95 % t interval of the mean (5 seeds or more)"


def runs(agent: str, seeds: int, task: str = "hammer") -> list[Curve]:
    return [Curve(task, agent, str(seed), STEPS, np.array([0.0, 0.2 * seed, 0.5])) for seed in range(seeds)]


def note(figure: Figure) -> str:
    """The note of the legend, which lies within the figure and above the other texts."""
    FigureCanvasAgg(figure).draw()
    (below,) = figure.legends
    box, title = below.get_window_extent(), below.get_title()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    if title.get_text():
        assert title.get_window_extent().y0 >= max(text.get_window_extent().y1 for text in below.get_texts()) - 1
        assert title.get_window_extent().y1 <= min(axis.get_tightbbox().y0 for axis in figure.axes)
    return title.get_text()


@pytest.mark.parametrize(("seeds", "expected"), [(1, ""), (3, LINES), (5, f"{LINES} · {BAND}")])
def test_every_seed_is_drawn_and_lines_and_bands_are_named(seeds: int, expected: str) -> None:
    curves = runs("sac", seeds)
    figure = curve_figure(curves, "env steps", agent_styles(["sac"]))
    (axis,) = figure.axes
    assert len(axis.get_lines()) == (seeds + 1 if seeds > 1 else 1)
    assert len(axis.collections) == (seeds >= 5)
    assert note(figure) == expected


def test_published_curves_have_no_thin_lines() -> None:
    figure = curve_figure(runs(f"sac{PUBLISHED}", 5), "env steps", agent_styles([f"sac{PUBLISHED}"]))
    assert len(figure.axes[0].get_lines()) == 1 and note(figure) == BAND


@pytest.mark.parametrize(("seeds", "expected"), [(1, ""), (3, "areas and bars: 95 % intervals")])
def test_aggregates_name_their_intervals_and_the_sides_of_their_ratio(seeds: int, expected: str) -> None:
    result = aggregate([*runs("sac", seeds), *runs("mbpo", seeds)], "sac")
    assert result is not None
    figure = aggregate_figure(result, "env steps", agent_styles(result.runs))
    assert figure.axes[3].get_ylabel() == "env steps of sac\n/ of the agent"
    assert note(figure) == expected
