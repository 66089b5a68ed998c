"""The report: one page that needs nothing else and holds what the folder holds, and what is left out of it."""

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from mbrl.errors import UserError
from mbrl.results.curves import Curve
from mbrl.results.gap_figure import PANELS, PREFIXES, _series
from mbrl.results.metric_rows import MAX_POINTS, metric_rows
from mbrl.results.report import report
from mbrl.results.report_data import results
from mbrl.results.report_figures import MAX_EMBEDDED, model_metrics

VIDEO = b"\x00\x00\x00 ftypisom not a real one"


def make_run(folder: Path, agent: str, seed: int, rates: list[float], *, goals: str = "fresh") -> Path:
    run = folder / agent / "hammer" / f"seed{seed}"
    run.mkdir(parents=True)
    config = f"agent: {{name: {agent}, ratio: '{agent}<b>'}}\nenv: {{task: hammer, goals: {goals}}}\n"
    (run / "config.yaml").write_text(f"{config}seed: {seed}\ntotal_env_steps: 3000\n")
    rows = [f"{1000 * (i + 1)},{rate},{seed}" for i, rate in enumerate(rates)]
    (run / "eval.csv").write_text("\n".join(["step,success,seed", *rows]) + "\n")
    start = {"command": f"mbrl train agent={agent} seed={seed}", "commit": "abc", "packages": {"torch": "2"}}
    (run / "starts.jsonl").write_text(json.dumps({**start, "time": str(seed)}) + "\n")
    metrics = [{"env_steps": i, "wall_time": i, "world_model/loss": 1.0, "policy/q": 2.0} for i in range(100)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in metrics))
    return run


def test_the_page_needs_nothing_else_and_has_every_run(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / "runs", "sac", seed, [0.0, 0.5, 1.0])
        make_run(tmp_path / "runs", "mbpo", seed, [0.5, 1.0, 1.0])
    (tmp_path / "runs/mbpo/hammer/seed0/imagination.mp4").write_bytes(VIDEO)
    page = report(tmp_path / "runs").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing is fetched"
    assert page.count("data:image/svg+xml") == 3, "curves, over the tasks, world models"
    assert base64.b64encode(VIDEO).decode() in page
    for agent in ("sac", "mbpo"):
        for seed in range(2):
            assert f"mbrl train agent={agent} seed={seed}" in page
    assert "agent.ratio" in page and "mbpo&lt;b&gt;" in page and "<b>" not in page, "what differs, escaped"
    assert page.count("abc") == 1, "one origin for all runs"
    assert "Left out" not in page
    assert not list((tmp_path / "runs").glob(".*.tmp"))


def test_a_large_video_is_linked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "some runs", "sac", 0, [0.0, 1.0])
    (run / "imagination.mp4").write_bytes(VIDEO)
    (run / "large#1.mp4").touch()
    os.truncate(run / "large#1.mp4", MAX_EMBEDDED + 1)
    page = report(tmp_path / "some runs", tmp_path / "pages" / "page.html").read_text()
    assert base64.b64encode(VIDEO).decode() in page
    assert 'href="../some%20runs/sac/hammer/seed0/large%231.mp4"' in page and len(page) < MAX_EMBEDDED


def test_what_links_point_to_is_not_in_the_page(tmp_path: Path) -> None:
    (tmp_path / "private.mp4").write_bytes(VIDEO)
    (tmp_path / "private.jsonl").write_text('{"command": "private"}\n')
    make_run(tmp_path / "runs", "mbpo", 0, [0.5, 1.0])
    (tmp_path / "private.csv").write_text("step,success,seed\n0,0.123,0\n100,0.456,0\n")
    links = {"film.mp4": "private.mp4", "starts.jsonl": "private.jsonl", "eval.csv": "private.csv"}
    for seed, (name, target) in enumerate(links.items()):
        run = make_run(tmp_path / "runs", "sac", seed, [0.0, 1.0])
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / target)
    page = report(tmp_path / "runs").read_text()
    assert base64.b64encode(VIDEO).decode() not in page and '"private"' not in page
    assert all(f"{name} is a link" in page for name in links) and "0.46" not in page and ">sac<" not in page
    assert "mbrl train agent=mbpo seed=0" in page and "mbrl train agent=sac" not in page


def test_runs_that_all_hold_links_are_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "sac", 0, [0.0, 1.0])
    (run / "film.mp4").symlink_to(tmp_path / "private.mp4")
    with pytest.raises(UserError, match=r"no run that can be reported: skipped .*film\.mp4 is a link"):
        report(tmp_path / "runs")


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "sac", 0, [0.0, 1.0])
    assert (
        report(tmp_path / "runs", tmp_path / "a.html").read_text()
        == report(tmp_path / "runs", tmp_path / "b.html").read_text()
    )


def test_torn_runs_are_named_and_runs_without_evaluations_are_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "sac", 0, [0.0, 1.0])
    (make_run(tmp_path / "runs", "sac", 1, [0.0]) / "eval.csv").write_text("step,success,seed\n")
    (make_run(tmp_path / "runs", "sac", 2, [0.0]) / "config.yaml").write_text("agent: {name: sac")
    (make_run(tmp_path / "runs", "sac", 3, [0.0]) / "starts.jsonl").unlink()
    page = report(tmp_path / "runs", tmp_path / "page.html").read_text()
    left_out = page[page.index("Left out") :]
    assert "sac/hammer/seed1" in left_out and "sac/hammer/seed2" in left_out
    assert page.count("sac · hammer · seed") == 3, "the torn one has no settings to show"
    assert "The command was not recorded." in page


def test_a_run_with_several_tasks_is_one_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "sac", 0, [0.0, 0.5])
    rows = [f"{step},{rate},0,{task}" for step, rate in ((1000, 0), (2000, 0.5)) for task in ("reach", "push")]
    (run / "eval_tasks.csv").write_text("\n".join(["step,success,seed,task", *rows]) + "\n")
    make_run(tmp_path / "runs", "waiting", 0, [])
    page = report(tmp_path / "runs", tmp_path / "page.html").read_text()
    assert "2 runs of 1 agent," in page, "one has not been evaluated yet"
    assert page.count("sac · hammer · seed 0") == 1 and "hammer · reach" in page


def test_other_protocols_are_marked(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "sac", 0, [0.0, 1.0])
    make_run(tmp_path / "runs", "mbpo", 0, [0.0, 1.0], goals="fixed")
    page = report(tmp_path / "runs", tmp_path / "page.html").read_text()
    assert "sac [env.goals=fresh]" in page and "mbpo [env.goals=fixed]" in page


def test_published_curves_are_laid_over(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "sac", 0, [0.0, 1.0])
    alone = report(tmp_path / "runs", tmp_path / "page.html").read_text()
    (tmp_path / "published" / "tdmpc2").mkdir(parents=True)
    (tmp_path / "published" / "tdmpc2" / "hammer.csv").write_text("step,success,seed\n0,0,1\n3000,1,1\n")
    assert report(tmp_path / "runs", tmp_path / "page.html", tmp_path / "published").read_text() != alone


def test_a_folder_without_runs_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run folders"):
        report(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report(tmp_path / "nowhere")


def curve(seed: int, steps: list[float], success: list[float]) -> Curve:
    return Curve("hammer", "sac", str(seed), np.array(steps), np.array(success))


def test_results_are_means_where_all_seeds_have_data() -> None:
    (row,) = results([curve(0, [0, 10, 20], [0, 0, 1]), curve(1, [0, 10], [1, 1])])
    assert (row.seeds, row.env_steps) == (2, 10)
    assert row.last == (0.5, 0.0, 1.0) and row.mean == (0.5, 0.0, 1.0)
    (alone,) = results([curve(0, [0, 10, 20], [0, 0, 1])])
    assert (alone.last[0], alone.mean[0]) == (1.0, 0.25) and np.isnan([alone.last[1:], alone.mean[1:]]).all()
    assert results([curve(0, [0, 10], [0, 0]), curve(1, [20, 30], [1, 1])]) == []


def test_metrics_are_averaged_down(tmp_path: Path) -> None:
    rows = [{"env_steps": step, "world_model/loss": step % 2} for step in range(10 * MAX_POINTS)]
    rows += [{"env_steps": 1, "world_model/loss": None}, {"env_steps": 1, "policy/q": 1.0}]
    rows += [{"env_steps": 1, "policy/model_reward_loss": 1.0}]  # of DreamerV3
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"env_')
    metrics = model_metrics(tmp_path)
    assert list(metrics) == ["world_model/loss", "policy/model_reward_loss"]
    steps, values = metrics["world_model/loss"]
    assert len(steps) == MAX_POINTS and (values == 0.5).all() and steps[0] == 4.5


def test_a_run_that_measured_its_world_model_shows_what_it_costs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "mbpo", 0, [0.0, 1.0])
    measured = {"model_error/psnr_moving": 12.0, "model_error/psnr_moving_copy": 10.0, "policy/q_imagined": 3.0}
    rows = [{"env_steps": 1000, **measured}, {"env_steps": 2000, "policy/q_imagined": 1.0, "policy/q_real": 2.0}]
    rows += [{"env_steps": 3000, "eval/value": 50.0, "eval/value_true": 20.0}]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    assert "What the world model costs the agent" in report(tmp_path / "runs").read_text()
    metrics = metric_rows(run, PREFIXES)
    drawn = {panel.title: _series(panel, metrics) for panel in PANELS}
    found = {title: (list(steps), list(values)) for title, (steps, values) in drawn.items() if len(steps)}
    expected = [([1000.0], [2.0]), ([2000.0], [-1.0]), ([3000.0], [30.0])]
    assert sorted(found.values()) == expected, "differences where both are known"


def test_a_run_without_a_world_model_has_no_such_panel(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "sac", 0, [0.0, 1.0])
    assert "What the world model costs" not in report(tmp_path / "runs").read_text()
