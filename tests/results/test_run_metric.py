"""A run is judged by success, or by the return where its environment knows no success."""

from pathlib import Path

import pytest

from mbrl.cli.summary import summary
from mbrl.compose import composed
from mbrl.results.run_metric import judged_curve
from mbrl.run_folder.state import MAY_LACK_SUCCESS

METAWORLD, GYM = "mbrl.envs.metaworld.make_env", "mbrl.envs.registered.make_env"


def make_run(folder: Path, target: str, rates: list[float]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"agent: {{name: sac}}\nenv: {{_target_: {target}, task: walker-walk}}\n")
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


def test_the_summary_shows_the_return_and_how_to_plot_it(tmp_path: Path) -> None:
    lines = summary(make_run(tmp_path / "run", GYM, [0.0, 0.0]))
    assert "return 200.5 in the last evaluation; highest 200.5, at env step 2000" in lines
    assert f"mbrl plot {tmp_path} --metric return " in lines
    lines = summary(make_run(tmp_path / "other", METAWORLD, [0.5, 0.25]))
    assert "success 0.25 in the last evaluation; highest 0.50, at env step 1000" in lines
    assert f"mbrl plot {tmp_path}  " in lines


def test_a_run_whose_returns_are_lost_shows_success(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", GYM, [0.0])
    (folder / "metrics.jsonl").unlink()
    assert judged_curve(folder).metric == "success"


def test_the_environments_are_those_of_the_configurations() -> None:
    targets = {composed([f"env={name}", "agent=sac"]).env["_target_"] for name in ("dmc", "gym")}
    assert targets == set(MAY_LACK_SUCCESS)
