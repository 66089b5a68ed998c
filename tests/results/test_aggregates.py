"""Aggregates over tasks: known answers, the metrics of rliable, and what is left out."""

import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rliable.metrics import aggregate_iqm, probability_of_improvement

from mbrl.results.aggregate_figure import aggregate_figure, write_aggregates
from mbrl.results.aggregate_metrics import LEVELS
from mbrl.results.aggregates import MAX_FOR_ALL_PAIRS, Aggregates, aggregate
from mbrl.results.curves import Curve
from mbrl.results.style import agent_styles

STEPS = np.array([0.0, 10.0, 20.0, 40.0])


def runs(agent: str, task: str, *successes: list[float]) -> list[Curve]:
    return [Curve(task, agent, str(seed), STEPS, np.array(success)) for seed, success in enumerate(successes)]


def random_runs(agent: str, seed: int, seeds: int = 4) -> list[Curve]:
    generator = np.random.default_rng(seed)
    draws = {task: generator.integers(0, 21, (seeds, 4)) / 20 for task in ("hammer", "door-lock")}
    return [curve for task, values in draws.items() for curve in runs(agent, task, *values)]


def matrix(curves: list[Curve]) -> np.ndarray:
    tasks = sorted({curve.task for curve in curves})
    return np.array([[c.success for c in curves if c.task == task] for task in tasks]).swapaxes(0, 1)


def test_the_interquartile_mean_is_rliables_at_every_step() -> None:
    curves = random_runs("mbpo", 0)
    result = aggregate(curves)
    assert result is not None and result.tasks == ["door-lock", "hammer"] and result.runs == {"mbpo": 4}
    expected = [aggregate_iqm(matrix(curves)[..., step]) for step in range(4)]
    mean = result.interquartile_mean["mbpo"]
    np.testing.assert_allclose(mean.value, expected)
    assert (mean.low <= mean.value).all() and (mean.value <= mean.high).all() and (mean.low < mean.high).any()


def test_the_probability_of_improvement_is_rliables() -> None:
    one, other = random_runs("mbpo", 1), random_runs("sac", 2, seeds=3)
    result = aggregate(one + other)
    assert result is not None
    ((pair, improvement),) = result.improvement.items()
    scores = {c.agent: np.trapezoid(matrix(curves), STEPS, axis=-1) for curves in (one, other) for c in curves[:1]}
    assert improvement.value[0] == pytest.approx(probability_of_improvement(*(scores[agent] for agent in pair)))
    assert result.baseline == pair[1]


def test_the_profile_is_the_share_of_runs_above_each_score() -> None:
    hammer, door = ([1.0] * 4, [0.5] * 4, [0.0] * 4, [0.5] * 4), [[0.5] * 4] * 4
    result = aggregate(runs("a", "hammer", *hammer) + runs("a", "door", *door))
    assert result is not None
    profile = dict(zip(result.profile["a"].x.round(2), result.profile["a"].value, strict=True))
    assert (profile[0.0], profile[0.45], profile[0.5], profile[0.95], profile[1.0]) == (7 / 8, 7 / 8, 1 / 8, 1 / 8, 0)


def test_the_ratio_of_steps_ends_where_one_of_them_does_not_reach_a_success() -> None:
    fast, slow = [0.0, 0.5, 1.0, 1.0], [0.0, 0.25, 0.5, 0.8]
    result = aggregate(runs("fast", "hammer", fast, fast) + runs("slow", "hammer", slow, slow))
    assert result is not None and result.baseline == "slow"
    ratio = result.steps_ratio["fast"]
    np.testing.assert_allclose(ratio.value[LEVELS <= 0.5001], 2.0)
    at_80 = ratio.value[np.isclose(LEVELS, 0.8)]
    np.testing.assert_allclose([*at_80], [40 / 16])
    assert np.isnan(ratio.value[LEVELS > 0.81]).all()
    np.testing.assert_allclose(ratio.low, ratio.value)  # equal seeds: no doubt


def test_a_clone_that_learns_nothing_more_does_not_cut_the_others_short(caplog: pytest.LogCaptureFixture) -> None:
    clone = Curve("hammer", "bc", "0", np.array([0.0, 1.0]), np.array([0.5, 0.5]))  # the others end at 40
    result = aggregate([*runs("a", "hammer", [0.0, 0.5, 1.0, 1.0]), clone])
    assert result is not None and list(result.interquartile_mean) == ["a"] and result.end == STEPS[-1]
    assert "bc is left out: its curves end at 1" in caplog.text


def test_no_ratio_is_to_an_agent_that_never_succeeds() -> None:
    fast, slow, never = [0.0, 0.5, 1.0, 1.0], [0.0, 0.25, 0.5, 0.8], [0.0] * 4
    agents = {"fast": fast, "slow": slow, "never": never}
    result = aggregate([curve for agent, rates in agents.items() for curve in runs(agent, "hammer", rates, rates)])
    assert result is not None and result.baseline == "slow" and list(result.steps_ratio) == ["fast", "never"]
    np.testing.assert_allclose(result.steps_ratio["fast"].value[LEVELS <= 0.5001], 2.0)
    assert np.isnan(result.steps_ratio["never"].value).all()


def test_steps_to_a_success_lie_on_the_curve_itself() -> None:
    dipping, slow = [0.5, 0.2, 1.0, 1.0], [0.0, 0.0, 0.4, 1.0]
    result = aggregate(runs("dips", "hammer", dipping, dipping) + runs("slow", "hammer", slow, slow))
    assert result is not None and result.baseline == "slow"
    ratio = result.steps_ratio["dips"]
    reached = {round(float(level), 2): float(value) for level, value in zip(ratio.x, ratio.value, strict=True)}
    assert reached[0.6] == pytest.approx((20 + 20 / 3) / 15), "from .2 at 10 to 1 at 20 it crosses .6 at 15"
    assert np.isnan(reached[0.4]), "it had that at its first evaluation"


def test_runs_that_begin_above_a_level_leave_no_hole_in_its_interval() -> None:
    fast = [[level, 0.8, 0.9, 1.0] for level in (0.0, 0.0, 0.6, 0.6)]
    slow = [[level, 0.0, 0.5, 0.9] for level in (0.0, 0.0, 0.0, 0.2)]
    result = aggregate(runs("fast", "hammer", *fast) + runs("slow", "hammer", *slow))
    assert result is not None
    ratio = result.steps_ratio["fast"]
    known = np.isfinite(ratio.value)
    assert known.any() and np.isfinite(ratio.low[known]).all() and np.isfinite(ratio.high[known]).all()


def test_the_tasks_of_one_run_are_drawn_together() -> None:
    tasks = [f"mt · {number}" for number in range(10)]
    several = [
        Curve(task, "sac", str(seed), STEPS, np.full(4, float(seed < 3)), Path(f"seed{seed}"))
        for seed in range(6)
        for task in tasks
    ]
    result = aggregate(several)
    alone = aggregate(runs("sac", "mt", *[[float(seed < 3)] * 4 for seed in range(6)]))
    assert result is not None and alone is not None
    mean, expected = result.interquartile_mean["sac"], alone.interquartile_mean["sac"]
    assert (mean.low[0], mean.high[0]) == (expected.low[0], expected.high[0]) == (0.0, 1.0)


def test_what_ends_early_or_has_no_steps_is_said(caplog: pytest.LogCaptureFixture) -> None:
    nowhere = [Curve("hammer", "random", "0", np.zeros(1), np.zeros(1))]
    short = Curve("hammer", "a", "9", STEPS[:2], np.zeros(2))
    result = aggregate([*runs("a", "hammer", [0.5] * 4), short, *runs("b", "hammer", [0.5] * 4), *nowhere])
    assert result is not None and list(result.runs) == ["a", "b"] and result.end == 10.0
    assert "random is left out" in caplog.text and "until 10 only: there a on hammer, seed 9, ends" in caplog.text
    assert aggregate(nowhere) is None


def test_intervals_come_from_whole_runs() -> None:
    result = aggregate(runs("a", "hammer", [0.49] * 4, [0.51] * 4) + runs("b", "hammer", [0.5] * 4, [0.5] * 4))
    assert result is not None
    mean = result.interquartile_mean["a"]
    margin = 12.7062 * 0.01  # t(0.975, 1 degree of freedom) and the standard error of the mean of two runs
    np.testing.assert_allclose(mean.value - mean.low, margin, rtol=0.05)
    np.testing.assert_allclose(mean.high - mean.value, margin, rtol=0.05)


def test_one_seed_gives_no_interval() -> None:
    result = aggregate(runs("a", "hammer", [0.0, 0.2, 0.4, 0.6]) + runs("b", "hammer", [0.1] * 4, [0.2] * 4))
    assert result is not None
    assert np.isnan(result.interquartile_mean["a"].low).all() and np.isfinite(result.interquartile_mean["b"].low).all()
    assert all(np.isnan(one.high).all() for one in result.improvement.values())


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    half = [0.5] * 4
    curves = runs("a", "hammer", half, half, half) + runs("a", "door", half, half) + runs("b", "hammer", [0.1] * 4)
    with caplog.at_level(logging.WARNING):
        result = aggregate([*curves, *runs("b", "door", [0.1] * 4), *runs("b", "window", [0.1] * 4)])
    assert result is not None and result.runs == {"a": 2, "b": 1} and result.tasks == ["door", "hammer"]
    assert "window is left out" in caplog.text and "a on hammer counts without seed 2" in caplog.text
    assert aggregate(runs("a", "hammer", [0.5] * 4) + runs("b", "door", [0.5] * 4)) is None
    assert "no task, or no steps of a task, in common" in caplog.text


def test_an_agent_without_a_common_task_does_not_take_the_figure_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    curves = [*runs("a", "hammer", [1.0] * 4), *runs("a", "door", [1.0] * 4), *runs("b", "hammer", [0.5] * 4)]
    result = aggregate([*curves, *runs("b", "door", [0.5] * 4), *runs("alone", "window", [0.1] * 4)])
    assert result is not None and result.tasks == ["door", "hammer"] and set(result.runs) == {"a", "b"}
    assert "alone is left out" in caplog.text


def test_curves_of_unequal_length_count_where_all_have_data() -> None:
    short = Curve("hammer", "a", "9", np.array([10.0, 20.0]), np.array([0.0, 1.0]))
    result = aggregate([*runs("a", "hammer", [1.0] * 4), short, *runs("b", "hammer", [0.0] * 4)])
    assert result is not None and result.end == 20.0
    assert result.interquartile_mean["a"].x.tolist() == [10.0, 20.0]
    assert result.interquartile_mean["a"].value.tolist() == [0.5, 1.0]


def test_the_mean_of_several_tasks_does_not_count_beside_them() -> None:
    parts = [curve for task in ("two · reach", "two · push") for curve in runs("a", task, [0.5] * 4)]
    result = aggregate([*runs("a", "two", [0.5] * 4), *parts])
    assert result is not None and result.tasks == ["two · push", "two · reach"]


def test_the_same_runs_say_the_same_and_leave_random_numbers_alone() -> None:
    curves = random_runs("mbpo", 0)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    one, other = aggregate(curves), aggregate(curves)
    assert one is not None and other is not None
    np.testing.assert_array_equal(one.interquartile_mean["mbpo"].low, other.interquartile_mean["mbpo"].low)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002


def test_the_figure_has_a_panel_for_each_measure_and_its_data_beside_it(tmp_path: Path) -> None:
    result = aggregate(random_runs("mbpo", 0) + random_runs("sac", 1))
    alone = aggregate(random_runs("mbpo", 0))
    assert result is not None and alone is not None
    assert [len(drawn(one).axes) for one in (result, alone)] == [4, 2]
    write_aggregates(result, tmp_path / "x.csv")
    rows = [line.split(",") for line in (tmp_path / "x.csv").read_text().splitlines()]
    counted = {figure: sum(row[0] == figure for row in rows[1:]) for figure in {row[0] for row in rows[1:]}}
    assert counted == {
        "interquartile_mean": 8, "profile": 42, "improvement": 1, f"steps_ratio to {result.baseline}": len(LEVELS)
    }  # fmt: skip


def drawn(result: Aggregates) -> Figure:
    return aggregate_figure(result, "env steps", agent_styles(result.runs))


@pytest.mark.parametrize("count", [3, 9])
def test_many_agents_are_compared_with_one(count: int) -> None:
    curves = [curve for n in range(count) for curve in runs(f"agent {n}", "hammer", [0.0, 0.1 * n, 0.1 * n, 0.1 * n])]
    result = aggregate(curves)
    assert result is not None and result.baseline == "agent 1", "agent 0 never succeeds"
    assert len(result.improvement) == (3 if count <= MAX_FOR_ALL_PAIRS else count - 1)
    chosen = aggregate(curves, "agent 2")
    assert chosen is not None and chosen.baseline == "agent 2"
    assert {other for _, other in chosen.improvement} == {"agent 2"} and len(chosen.improvement) == count - 1
    assert chosen.steps_ratio.keys() == {agent for agent, _ in chosen.improvement}


@pytest.mark.parametrize("count", [2, 9])
def test_no_labels_of_pairs_overlap(count: int) -> None:
    names = [f"mbpo_ivideogpt [real_ratio=0.{n}, eval.episodes=20]" for n in range(count)]
    result = aggregate([curve for name in names for curve in runs(name, "hammer", [0.0, 0.5, 0.5, 1.0])])
    assert result is not None
    figure = drawn(result)
    FigureCanvasAgg(figure).draw()
    boxes = sorted((label.get_window_extent() for label in figure.axes[2].get_yticklabels()), key=lambda box: box.y0)
    assert len(boxes) == len(result.improvement)
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))


def test_a_baseline_that_is_left_out_is_named(caplog: pytest.LogCaptureFixture) -> None:
    curves = [*runs("a", "hammer", [0.0, 0.5, 1.0, 1.0]), *runs("b", "hammer", [0.0, 0.5, 0.5, 0.5])]
    result = aggregate([*curves, Curve("hammer", "bc", "0", np.zeros(1), np.ones(1))], "bc")
    assert result is not None and result.baseline == "b"
    assert "baseline bc is not among the agents" in caplog.text


def test_nine_agents_have_nine_colours_in_every_figure() -> None:
    styles = agent_styles([*"ihgfedcba", "sac (published)"])
    assert list(styles) == [*"abcdefghi", "sac (published)"]
    assert len({styles[agent]["color"] for agent in "abcdefghi"}) == 9
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == 10
