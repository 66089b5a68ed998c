"""Learning curves: what is read, what is skipped, how seeds are summed up, and what the picture shows."""

import csv
import json
import logging
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mbrl.errors import UserError
from mbrl.results.curve_figure import curve_figure
from mbrl.results.curves import Curve, summarise
from mbrl.results.plot import _baseline, plot
from mbrl.results.read_curves import published_curves, read_curves
from mbrl.results.style import agent_styles, legend
from tests.shared_data import SHARED_DATA

pytestmark = pytest.mark.process  # whole commands

REFERENCE_CURVES = SHARED_DATA / "reference-curves"


def make_run(folder: Path, agent: str, seed: int, rates: list[float], every: int = 1000) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"agent: {{name: {agent}}}\nenv: {{task: door-lock}}\n")
    lines = [f"{every * (i + 1)},{rate},{seed}" for i, rate in enumerate(rates)]
    (folder / "eval.csv").write_text("\n".join(["step,success,seed", *lines]) + "\n")
    return folder


def curve(steps: list[float], success: list[float]) -> Curve:
    return Curve("door-lock", "drqv2", "0", np.array(steps), np.array(success))


def drawn(output: Path) -> list[dict[str, str]]:
    with output.with_suffix(".csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_mean_counts_runs_where_all_have_data_and_joins_their_points_by_lines() -> None:
    band = summarise([curve([0, 10, 20], [0, 1, 1]), curve([0, 20, 40], [0, 0, 1])])
    assert band is not None
    np.testing.assert_allclose(band.steps, [0, 10, 20])
    np.testing.assert_allclose(band.mean, [0, 0.5, 0.5])
    assert (band.low <= band.mean).all() and (band.mean <= band.high).all()


def test_runs_without_common_steps_have_no_mean() -> None:
    assert summarise([curve([0, 10], [0, 1]), curve([20, 30], [0, 1])]) is None


def test_the_interval_is_the_t_interval_over_seeds() -> None:
    band = summarise([curve([0], [value]) for value in (0.4, 0.5, 0.6)])
    assert band is not None
    margin = 4.302653 * 0.1 / 3**0.5  # t(0.975, 2 degrees of freedom) and the standard error
    assert (band.low[0], band.mean[0], band.high[0]) == pytest.approx((0.5 - margin, 0.5, 0.5 + margin))


@pytest.mark.parametrize(("seeds", "suffix"), [(1, ".png"), (3, ".svg"), (5, ".png")])
def test_curves_of_run_folders_are_drawn(tmp_path: Path, seeds: int, suffix: str) -> None:
    for seed in range(seeds):
        make_run(tmp_path / "runs" / f"d{seed}", "drqv2", seed, [0.0, 0.5, 1.0])
        make_run(tmp_path / "runs" / f"m{seed}", "mbpo_ivideogpt", seed, [0.5, 1.0])
    output, beside = plot([tmp_path / "runs"], tmp_path / f"curves{suffix}")
    assert output.stat().st_size > 5000 and beside.name == f"curves-over-tasks{suffix}"
    means = [row for row in drawn(output) if row["line"] == "mean" and row["agent"] == "drqv2"]
    assert [(row["step"], row["success"]) for row in means] == [("1000", "0"), ("2000", "0.5"), ("3000", "1")]
    assert all((row["low"] == "") == (seeds == 1) for row in means), "one seed has no interval"
    assert len([row for row in drawn(output) if row["line"].startswith("seed")]) == 5 * seeds


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_data_give_the_same_picture(tmp_path: Path, suffix: str) -> None:
    run = make_run(tmp_path / "run", "drqv2", 0, [0.0, 1.0])
    pictures = [plot([run], tmp_path / f"{name}{suffix}")[0].read_bytes() for name in "ab"]
    assert pictures[0] == pictures[1]


def test_torn_and_foreign_files_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = make_run(tmp_path / "good", "drqv2", 0, [0.0, 1.0])
    with (good / "eval.csv").open("a") as stream:
        stream.write("30")
    empty = make_run(tmp_path / "empty", "drqv2", 1, [])
    percent = make_run(tmp_path / "percent", "drqv2", 1, [72.0])
    bare = make_run(tmp_path / "bare", "drqv2", 2, [0.5])
    (bare / "config.yaml").unlink()
    with caplog.at_level(logging.WARNING):
        curves = read_curves([tmp_path])
    assert [list(curve.success) for curve in curves] == [[0.0, 1.0]]
    for named in (good, empty, percent, bare):
        assert str(named / "eval.csv") in caplog.text


def test_published_curves_are_laid_over(tmp_path: Path) -> None:
    published = tmp_path / "tdmpc2" / "mw-door-lock.csv"
    published.parent.mkdir()
    published.write_text("step,success,seed\n0,0.0,1\n100000,1.0,1\n0,0.2,2\n100000,0.8,2\n")
    run = make_run(tmp_path / "run", "drqv2", 0, [0.0, 1.0])
    rows = drawn(plot([run, published], tmp_path / "curves.svg")[0])
    assert {(row["task"], row["agent"]) for row in rows} == {("door-lock", "drqv2"), ("door-lock", "tdmpc2")}
    assert [row["success"] for row in rows if row["agent"] == "tdmpc2" and row["line"] == "mean"] == [
        "0.1",
        "0.9",
    ]


def test_reference_curves_are_laid_over_as_far_as_the_runs_go(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "sac", 0, [0.0, 1.0], every=1000)
    (tmp_path / "published" / "sac").mkdir(parents=True)
    for task in ("door-lock", "hammer"):
        csv_file = tmp_path / "published" / "sac" / f"mw-{task}.csv"
        csv_file.write_text("step,success,seed\n0,0,1\n1000,0.2,1\n5000,1,1\n")
    rows = drawn(plot([tmp_path / "runs"], tmp_path / "curves.png", tmp_path / "published")[0])
    means = [(row["task"], row["agent"], row["step"], row["success"]) for row in rows if row["line"] == "mean"]
    other = "sac (published)"
    assert means == [
        ("door-lock", "sac", "1000", "0"), ("door-lock", "sac", "2000", "1"),
        ("door-lock", other, "0", "0"), ("door-lock", other, "1000", "0.2"), ("door-lock", other, "2000", "0.4"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="holds no curve of door-lock"):
        (tmp_path / "published" / "sac" / "mw-door-lock.csv").unlink()
        plot([tmp_path / "runs"], tmp_path / "curves.png", tmp_path / "published")


def test_the_reference_curves_are_read() -> None:
    if not REFERENCE_CURVES.is_dir():
        pytest.skip(f"no published curves in {REFERENCE_CURVES}: a clone of the project alone does not have them")
    curves = read_curves([REFERENCE_CURVES / "tdmpc2" / "mw-door-lock.csv"])
    assert {(curve.task, curve.agent) for curve in curves} == {("door-lock", "tdmpc2")}
    assert len(curves) == 3


def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "drqv2", 0, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"must end in \.png"):
        plot([run], tmp_path / "curve.bmp")
    (run / "eval.csv").unlink()
    with pytest.raises(ValueError, match="no evaluations to draw"):
        plot([run], tmp_path / "curve.png")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plot([tmp_path / "nowhere"], tmp_path / "x.png")


def test_the_data_beside_the_picture_never_overwrite_an_input(tmp_path: Path) -> None:
    published = tmp_path / "curves.csv"
    published.write_text("step,success,seed\n0,0.0,1\n")
    with pytest.raises(ValueError, match="would overwrite"):
        plot([published], tmp_path / "curves.png")
    assert published.read_text().startswith("step,success,seed")


def test_a_name_without_suffix_gives_png_and_svg(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "drqv2", 0, [0.0, 1.0])
    assert [picture.name for picture in plot([run], tmp_path / "new" / "curves")] == ["curves.png", "curves.svg"]


@pytest.mark.parametrize(("axis", "expected"), [("gradient_steps", [100.0, 350.0]), ("wall_time", [0.5, 1.5])])
def test_curves_lie_over_gradient_steps_and_hours(tmp_path: Path, axis: str, expected: list[float]) -> None:
    run = make_run(tmp_path / "run", "drqv2", 0, [0.0, 1.0])
    counted = [
        {"env_steps": 1000, "gradient_steps": 100, "wall_time": 1800},
        {"env_steps": 1000, "eval/success": 0.0},
        {"env_steps": 1900, "gradient_steps": 325, "wall_time": 5220},
        {"env_steps": 2100, "gradient_steps": 375, "wall_time": 5580},
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in counted) + '{"env_st')
    assert read_curves([run], axis)[0].steps.tolist() == pytest.approx(expected)


def test_axes_that_curves_do_not_have_are_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = tmp_path / "sac" / "door-lock.csv"
    published.parent.mkdir()
    published.write_text("step,success,seed\n0,0.0,1\n")
    with pytest.raises(ValueError, match="no evaluations to draw"):
        plot([published], tmp_path / "x.png", axis="wall_time")
    assert "it has env steps, but no hours" in caplog.text
    with pytest.raises(ValueError, match="published curves have env steps only"):
        plot([published], tmp_path / "x.png", tmp_path, axis="wall_time")
    with pytest.raises(ValueError, match="no x-axis 'epochs'"):
        plot([published], tmp_path / "x.png", axis="epochs")


def test_runs_of_one_agent_with_other_settings_are_never_averaged(tmp_path: Path) -> None:
    for seed in range(2):
        for ratio in (0.5, 0.9):
            run = make_run(tmp_path / f"{ratio}-{seed}", "mbpo", seed, [ratio])
            with (run / "config.yaml").open("a") as stream:
                stream.write(f"seed: {seed}\nreal_ratio: {ratio}\nthreads: {seed}\n")
    agents = [curve.agent for curve in read_curves([tmp_path])]
    assert sorted(agents) == ["mbpo [real_ratio=0.5]"] * 2 + ["mbpo [real_ratio=0.9]"] * 2


def test_torn_tables_of_tasks_touch_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path / "run", "sac", 0, [0.0, 1.0])
    for text in ("", "step,success,seed,task\n1000,0.5,0,reach\n2000,0.9,0", "step,success,seed,task\n2000,0.9,0,\n"):
        (run / "eval_tasks.csv").write_text(text)
        curves = {curve.task: curve.success.tolist() for curve in read_curves([run])}
        assert curves.pop("door-lock") == [0.0, 1.0]
        assert curves == ({"door-lock · reach": [0.5]} if "reach" in text else {})
    assert str(run / "eval_tasks.csv") in caplog.text


def test_each_run_counts_once_and_what_was_read_is_not_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "run", "sac", 0, [0.0, 1.0])
    assert len(read_curves([tmp_path / "runs", run, tmp_path / "runs"])) == 1
    published = tmp_path / "published" / "tdmpc2" / "door-lock.csv"
    published.parent.mkdir(parents=True)
    published.write_text("step,success,seed\n0,0.0,1\n2000,1.0,1\n")
    with pytest.raises(ValueError, match="would overwrite"):
        plot([run], published.with_suffix(".png"), tmp_path / "published")


def test_the_second_figure_of_an_earlier_call_does_not_stay(tmp_path: Path) -> None:
    one, other = (make_run(tmp_path / agent, agent, 0, [0.0, 1.0]) for agent in ("sac", "mbpo"))
    assert len(plot([one, other], tmp_path / "x.png")) == 2
    assert (tmp_path / "x-over-tasks.csv").exists()
    assert len(plot([one], tmp_path / "x.png")) == 1
    assert not list(tmp_path.glob("x-over-tasks*"))


def test_evaluations_at_one_place_on_the_axis_count_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "random", 0, [0.0, 0.5])
    counted = [{"env_steps": steps, "gradient_steps": 0} for steps in (1000, 2000)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in counted))
    (curve,) = read_curves([run], "gradient_steps")
    assert (curve.steps.tolist(), curve.success.tolist()) == ([0.0], [0.5])


def test_labels_name_the_curves_of_each_path(tmp_path: Path) -> None:
    one, other = (make_run(tmp_path / name, "sac", 0, [0.0, 1.0]) for name in ("one", "other"))
    (other / "config.yaml").write_text("agent: {name: sac, horizon: 5}\nenv: {task: door-lock}\n")
    curves = read_curves([one, other], labels=["short", "long"])
    assert [(curve.run, curve.agent) for curve in curves] == [(one, "short"), (other, "long")]
    with pytest.raises(UserError, match="1 labels for 2 paths: give --label once for each RUN"):
        read_curves([one, other], labels=["short"])
    with pytest.raises(UserError, match=r"label 'both' would name 2 agents \(sac \[horizon=5\], sac \[horizon=–\]\)"):
        read_curves([tmp_path], labels=["both"])
    with pytest.raises(UserError, match="would name 2 agents"):
        read_curves([one, other], labels=["same", "same"])


def test_chosen_agents_keep_their_colours(tmp_path: Path) -> None:
    for agent in ("bc", "mbpo", "sac"):
        make_run(tmp_path / "runs" / agent, agent, 0, [0.0, 1.0])
    colours = []
    for agents in ((), ("sac", "mbpo")):
        picture, *_ = plot([tmp_path / "runs"], tmp_path / "x.svg", agents=agents)
        assert {row["agent"] for row in drawn(picture)} == ({"sac", "mbpo"} if agents else {"bc", "mbpo", "sac"})
        colours.append(set(re.findall("stroke: (#[0-9a-f]{6})", picture.read_text())))
    blue = agent_styles(["bc", "mbpo", "sac"])["bc"]["color"].lower()
    assert colours[0] - colours[1] == {blue}
    for wrong in ({"agents": ["drqv2"]}, {"baseline": "drqv2"}):
        with pytest.raises(UserError, match="no curve of agent 'drqv2': choose from bc, mbpo, sac"):
            plot([tmp_path / "runs"], tmp_path / "x.svg", **wrong)


def test_an_agent_without_brackets_stands_for_all_its_settings(tmp_path: Path) -> None:
    for ratio in (0.5, 0.9):
        run = make_run(tmp_path / f"{ratio}", "mbpo", 0, [ratio])
        (run / "config.yaml").write_text(f"agent: {{name: mbpo, ratio: {ratio}}}\nenv: {{task: door-lock}}\n")
    make_run(tmp_path / "other", "mbpo_ivideogpt", 0, [0.5])
    rows = drawn(plot([tmp_path], tmp_path / "x.png", agents=["mbpo"])[0])
    assert {row["agent"] for row in rows} == {"mbpo [ratio=0.5]", "mbpo [ratio=0.9]"}


def test_a_baseline_without_brackets_stands_for_the_one_agent_of_that_name(tmp_path: Path) -> None:
    curves = [replace(curve([0, 10], [0, 1]), agent=agent) for agent in ("sac [episodes=5]", "mbpo [a]", "mbpo [b]")]
    assert _baseline("sac", curves) == _baseline("sac [episodes=5]", curves) == "sac [episodes=5]"
    with pytest.raises(UserError, match=r"--baseline mbpo stands for several agents: choose from mbpo \[a\], mbpo"):
        _baseline("mbpo", curves)
    with pytest.raises(UserError, match="no curve of agent 'bc'"):
        _baseline("bc", curves)


def test_files_of_other_studies_and_copies_are_no_further_seeds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, copy = (make_run(tmp_path / "runs" / name, "sac", 0, [0.0, 1.0]) for name in ("one", "copy"))
    for study in ("mine", "published"):
        (tmp_path / study / "sac").mkdir(parents=True)
        (tmp_path / study / "sac" / "door-lock.csv").write_text("step,success,seed\n0,0.0,0\n2000,1.0,0\n")
    plot([one, tmp_path / "mine", tmp_path / "published"], tmp_path / "x.png", aggregates=False)
    assert {row["agent"] for row in drawn(tmp_path / "x.png")} == {"sac", "sac [mine]", "sac [published]"}
    assert not caplog.messages
    plot([one, copy], tmp_path / "x.png", aggregates=False)
    assert caplog.messages == [f"seed 0 of sac on door-lock counts as 2 runs ({one}, {copy})"]


def test_figures_go_to_the_folder_that_holds_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (make_run(tmp_path / "runs" / agent / "seed0", agent, 0, [0.0, 1.0]) for agent in ("sac", "mbpo"))
    assert plot([one])[0] == one / "curves.png"
    monkeypatch.chdir(tmp_path)
    assert plot([one, other])[0] == Path("runs/curves.png"), "relative to the current folder"
    assert not list(tmp_path.glob("curves*"))


def test_drawn_data_are_no_input_the_second_time(tmp_path: Path) -> None:
    for agent in ("sac", "tdmpc2"):
        (tmp_path / agent).mkdir()
        (tmp_path / agent / "hammer.csv").write_text("step,success,seed\n0,0.0,1\n2000,1.0,1\n")
    curves, pictures = len(read_curves([tmp_path])), plot([tmp_path], tmp_path / "curves.png")
    assert len(read_curves([tmp_path])) == curves == 2 and (tmp_path / "curves-over-tasks.csv").exists()
    # as a shell writes FOLDER/*
    assert plot(sorted(tmp_path.iterdir()), tmp_path / "curves.png") == pictures


def test_sparse_published_curves_have_a_marker_at_each_evaluation(tmp_path: Path) -> None:
    (tmp_path / "sac").mkdir()
    (tmp_path / "sac" / "door-lock.csv").write_text("step,success,seed\n0,0,1\n10,0.5,1\n30,1,1\n")
    own = curve([0, 20], [0, 1])
    curves = [own, *published_curves(tmp_path, [own])]
    figure = curve_figure(curves, "env steps", agent_styles(curve.agent for curve in curves))
    lines = {str(line.get_marker()): line for line in figure.axes[0].get_lines()}
    assert lines["o"].get_xdata().tolist() == [0, 10, 20] and lines["o"].get_markevery() == [0, 1], (
        "20 is no evaluation"
    )
    assert lines["None"].get_xdata().tolist() == [0, 20]


def test_progress_is_reported(tmp_path: Path) -> None:
    steps: list[str] = []
    plot([make_run(tmp_path / "run", "sac", 0, [0.0, 1.0])], on_progress=steps.append)
    assert steps == ["reading 1 file", "drawing 1 curve of 1 agent", "computing aggregates over tasks"]


@pytest.mark.slow  # CPU seconds, which differ from machine to machine
def test_twelve_agents_are_drawn_within_seconds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(12):
        for seed in range(2):
            rates = (generator.integers(0, 21, 20) / 20).tolist()
            make_run(tmp_path / f"{number}-{seed}", f"agent{number}", seed, rates)
    start = time.process_time()
    assert len(plot([tmp_path], tmp_path / "x.png")) == 2
    assert time.process_time() - start < 5.0, "a loop over bootstrap samples takes much longer"


def test_a_legend_fits_into_its_figure_however_long_its_names_are() -> None:
    figure, names = Figure(figsize=(6, 4), layout="constrained"), [f"mbpo [{'setting=1, ' * 12}{n}]" for n in range(3)]
    FigureCanvasAgg(figure)
    figure.subplots()
    legend(figure, agent_styles(names), {name: name for name in names}, 4)
    figure.draw_without_rendering()
    (drawn,) = figure.legends
    box = drawn.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_a_mark_rounding_and_the_version_of_a_task_are_no_differences(tmp_path: Path) -> None:
    for name, task in (("a", "reach"), ("b", "reach-v3")):
        run = make_run(tmp_path / name, "sac", 0, [])
        (run / "config.yaml").write_text(f"\ufeffagent: {{name: sac}}\nenv: {{task: {task}}}\n")
        (run / "eval.csv").write_text("\ufeffstep,success,seed\n1000,1.0000000000000002,0\n2000,-1e-17,0\n")
    curves = read_curves([tmp_path])
    assert {(curve.task, curve.agent) for curve in curves} == {("reach", "sac")}
    assert [curve.success.tolist() for curve in curves] == [[1.0, 0.0]] * 2


def test_names_of_any_kind_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ["a$x_{$b", "_hidden", "n" * 100_000, "n" * 99_999 + "m"]
    for number, name in enumerate(names):
        run = make_run(tmp_path / str(number), "x", 0, [0.0, 1.0])
        (run / "config.yaml").write_text(json.dumps({"agent": {"name": name}, "env": {"task": name}}))
    curves = read_curves([tmp_path])
    assert len({curve.agent for curve in curves}) == 4 and max(len(curve.agent) for curve in curves) < 100
    figure = curve_figure(curves, "env steps", agent_styles(curve.agent for curve in curves))
    (below,) = figure.legends
    shown = [text.get_text().strip() for text in below.get_texts()]
    assert shown[:2] == ["_hidden (1 seed)", "a$x_{$b (1 seed)"] and len(shown) == 4
    assert not any(text.get_parse_math() for text in [*below.get_texts(), *(axis.title for axis in figure.axes)])


def test_returns_are_drawn_in_their_own_units(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = make_run(tmp_path / f"runs/sac/seed{seed}", "sac", seed, [0.0, 0.0])
        rows = [{"env_steps": 1000 * (n + 1), "eval/return": 400.0 * n + 100 * seed} for n in range(2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (picture,) = plot([tmp_path / "runs"], tmp_path / "out.png", metric="return")
    assert picture.is_file()
    lines = drawn(tmp_path / "out.png")
    means = [(float(row["step"]), float(row["return"])) for row in lines if row["line"] == "mean"]
    assert means == [(1000, 50), (2000, 450)] and float(lines[-1]["high"]) > 1
    csv_file = tmp_path / "sac" / "walker-walk.csv"
    csv_file.parent.mkdir()
    csv_file.write_text("step,return,seed\n1000,-7.5,0\n")
    assert read_curves([csv_file], metric="return")[0].success.tolist() == [-7.5]
    for options in ({"metric": "returns"}, {"metric": "return", "baseline": "sac"}):
        with pytest.raises(UserError, match="metric"):
            plot([tmp_path / "runs"], tmp_path / "out.png", **options)


def test_a_figure_says_which_protocols_it_mixes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("default", "tdmpc2"):
        run = make_run(tmp_path / "runs" / name, "sac", 0, [0.0, 1.0])
        with (run / "config.yaml").open("a") as config:
            config.write(f"protocol: {{name: {name}}}\neval: {{success: {'last' if name == 'tdmpc2' else 'any'}}}\n")
    published = tmp_path / "published"
    (published / "tdmpc2").mkdir(parents=True)
    (published / "tdmpc2" / "door-lock.csv").write_text("step,success,seed\n0,0,1\n2000,1,1\n")
    names = {curve.agent for curve in read_curves([tmp_path / "runs"])}
    assert names == {"sac [protocol=default]", "sac [protocol=tdmpc2]"}
    plot([tmp_path / "runs"], tmp_path / "both.svg", aggregates=False)
    assert "mixes protocols, whose success rates are not comparable: default, tdmpc2" in caplog.text
    for runs, protocol, expected in (
        ("tdmpc2", None, "tdmpc2 (published)"),
        ("tdmpc2", "tdmpc2", "tdmpc2 (published)"),
        ("default", "tdmpc2", "tdmpc2 [protocol=tdmpc2] (published)"),
    ):
        if protocol is not None:
            (published / "protocol.txt").write_text(f"{protocol}\n")
        curves = published_curves(published, read_curves([tmp_path / "runs" / runs]))
        assert [curve.agent for curve in curves] == [expected]
