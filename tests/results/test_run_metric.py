"""A run is judged by success, or by the return where its environment knows no success."""

from pathlib import Path

import pytest

from mbrl.cli.summary import summary
from mbrl.compose import composed
from mbrl.errors import UserError
from mbrl.results.compare import compare
from mbrl.results.plot import plot
from mbrl.results.read_curves import read_curves
from mbrl.results.report import report
from mbrl.results.run_metric import judged_curve, judged_metric
from mbrl.run_folder.state import MAY_LACK_SUCCESS

METAWORLD, GYM = "mbrl.envs.metaworld.make_env", "mbrl.envs.registered.make_env"


def make_run(folder: Path, target: str, rates: list[float], task: str = "walker-walk") -> Path:
    folder.mkdir(parents=True)
    env = f"env: {{_target_: {target}, task: {task}}}\n"
    (folder / "config.yaml").write_text(f"agent: {{name: sac}}\n{env}total_env_steps: 5000\n")
    lines = "".join(f"{1000 * (i + 1)},{rate},0\n" for i, rate in enumerate(rates))
    (folder / "eval.csv").write_text(f"step,success,seed\n{lines}")
    rows = (f'{{"env_steps": {1000 * (i + 1)}, "eval/return": {100.25 * (i + 1)}}}\n' for i in range(len(rates)))
    (folder / "metrics.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize(
    ("target", "rates", "metric"),
    [(GYM, [0.0, 0.0], "return"), (GYM, [0.0, 0.1], "success"), (METAWORLD, [0.0, 0.0], "success")],
)
def test_an_environment_without_any_success_is_judged_by_its_return(
    target: str, rates: list[float], metric: str, tmp_path: Path
) -> None:
    curve = judged_curve(make_run(tmp_path / "run", target, rates))
    assert curve.metric == metric
    assert curve.success.tolist() == ([100.25, 200.5] if metric == "return" else rates)


@pytest.mark.parametrize(
    ("success", "metric", "told"),
    [(None, "return", []), (0.0, "success", ["walker-walk"]), (0.5, "success", ["walker-walk"])],
)
def test_runs_are_judged_by_their_return_only_where_none_has_a_success(
    success: float | None, metric: str, told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path / "a", GYM, [0.0])
    make_run(tmp_path / "b", GYM, [0.0], "Pendulum-v1")
    if success is not None:  # one that must report it, whether it has one or not
        make_run(tmp_path / "c", METAWORLD, [success], "hammer")
        make_run(tmp_path / "d", GYM, [1.0], "Pendulum-v1")
    assert judged_metric(read_curves([tmp_path])) == metric
    named = [record.getMessage() for record in caplog.records]
    assert [task for task in ("walker-walk", "Pendulum-v1", "hammer") if any(task in line for line in named)] == told


def test_figures_reports_and_comparisons_show_the_return(tmp_path: Path) -> None:
    one, other = (make_run(tmp_path / f"runs/{task}", GYM, [0.0, 0.0], task) for task in ("walker-walk", "Pendulum-v1"))
    pictures = plot([tmp_path / "runs"], tmp_path / "out.png")
    assert pictures == [tmp_path / "out.png"], "returns of several tasks are not aggregated"
    columns, *rows = (tmp_path / "out.csv").read_text().splitlines()
    assert ",return," in columns and rows[0] == "Pendulum-v1,sac,seed 0,1000,100.2,,"
    page = report(tmp_path / "runs").read_text()
    assert "mean return" in page and "200.50" in page and "success rate" not in page
    assert ("result", "return, last", "200.5", "200.5") in compare(one, other)
    assert ("result", "return, mean to 2000 env steps", "150.4", "150.4") in compare(one, other)
    with pytest.raises(UserError, match="leave out --baseline"):
        plot([tmp_path / "runs"], tmp_path / "out.png", baseline="sac")
    (tmp_path / "published" / "sac").mkdir(parents=True)
    with pytest.raises(UserError, match="leave out --reference"):
        report(tmp_path / "runs", reference=tmp_path / "published")
    (metaworld,) = plot([make_run(tmp_path / "other", METAWORLD, [0.0])], tmp_path / "zero.png")
    assert ",success," in metaworld.with_suffix(".csv").read_text()


def test_the_summary_shows_the_return(tmp_path: Path) -> None:
    lines = summary(make_run(tmp_path / "run", GYM, [0.0, 0.0]))
    assert "return 200.5 in the last evaluation; highest 200.5, at env step 2000" in lines
    lines = summary(make_run(tmp_path / "other", METAWORLD, [0.5, 0.25]))
    assert "success 0.25 in the last evaluation; highest 0.50, at env step 1000" in lines


def test_a_run_whose_returns_are_lost_shows_success(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", GYM, [0.0])
    (folder / "metrics.jsonl").unlink()
    assert judged_curve(folder).metric == "success"


def test_the_environments_are_those_of_the_configurations() -> None:
    targets = {composed([f"env={name}", "agent=sac"]).env["_target_"] for name in ("dmc", "gym")}
    assert targets == set(MAY_LACK_SUCCESS)
