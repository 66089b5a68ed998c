"""What differs between two runs, and where a run came from."""

import json
from pathlib import Path

import numpy as np
import pytest

from mbrl.results.compare import compare
from mbrl.results.curves import Curve, area
from mbrl.run_folder.provenance import STARTS, describe_process, read_starts, record_start


def make_run(folder: Path, *, gamma: float, torch: str, rates: list[float]) -> Path:
    folder.mkdir(parents=True)
    settings = f"agent: {{name: sac}}\nenv: {{task: hammer}}\nreplay: {{gamma: {gamma}}}\ntotal_env_steps: 30\n"
    (folder / "config.yaml").write_text(settings)
    start = {"time": gamma, "command": str(gamma), "packages": {"torch": torch}, "hardware": {"cores": 2}}
    (folder / STARTS).write_text(json.dumps({"packages": {"torch": "0"}}) + "\n" + json.dumps(start) + '\n{"ti')
    if rates:
        lines = [f"{10 * (n + 1)},{rate},0" for n, rate in enumerate(rates)]
        (folder / "eval.csv").write_text("\n".join(["step,success,seed", *lines]) + "\n")
    return folder


def test_settings_origin_and_results(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", gamma=0.9, torch="2.1", rates=[0.0, 0.5, 0.5])
    other = make_run(tmp_path / "other", gamma=0.95, torch="2.2", rates=[])
    assert compare(one, other) == [
        ("setting", "replay.gamma", "0.9", "0.95"),
        ("origin", "packages.torch", "2.1", "2.2"),
        ("result", "env steps", "0", "0"),
        ("result", "success, last", "0.5", "–"),
        ("result", "success, highest to 30 env steps", "0.5", "–"),
        ("result", "success, mean to 30 env steps", "0.375", "–"),
    ]


def test_a_longer_run_is_compared_where_both_have_data(tmp_path: Path) -> None:
    short = make_run(tmp_path / "short", gamma=0.9, torch="2.1", rates=[0.0, 0.5, 0.5])
    long = make_run(tmp_path / "long", gamma=0.9, torch="2.1", rates=[0.0, 0.5, 0.5, 1.0, 1.0])
    found = {name: values for kind, name, *values in compare(short, long) if kind == "result" and "success" in name}
    assert found == {
        "success, last": ["0.5", "1"],
        "success, highest to 30 env steps": ["0.5", "0.5"],
        "success, mean to 30 env steps": ["0.375", "0.375"],
    }


def test_runs_without_common_steps_have_neither_mean_nor_highest(tmp_path: Path) -> None:
    one, other = (make_run(tmp_path / name, gamma=0.9, torch="2.1", rates=[0.5]) for name in ("one", "other"))
    (other / "eval.csv").write_text("step,success,seed\n20,1,0\n")
    assert [name for kind, name, *_ in compare(one, other) if kind == "result"] == ["env steps", "success, last"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", gamma=0.9, torch="2.1", rates=[])
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        compare(one, tmp_path)


def test_the_area_counts_env_steps() -> None:
    def curve(steps: list[float], success: list[float]) -> Curve:
        return Curve("hammer", "sac", "0", np.array(steps), np.array(success))

    assert area(curve([10, 20, 40], [0, 1, 1])) == pytest.approx((5 + 20) / 30)
    assert area(curve([10], [0.4])) == 0.4


def test_every_start_is_noted(tmp_path: Path) -> None:
    assert read_starts(tmp_path) == []
    record_start(tmp_path, 0)
    record_start(tmp_path, 400)
    first, second = read_starts(tmp_path)
    assert (first["env_steps"], second["env_steps"]) == (0, 400)
    assert second["packages"]["torchrl"] and second["hardware"]["cores"] >= 1 and second["command"]


def test_the_commit_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # not of the folder that the command was given in
    commit = describe_process()["commit"]
    assert commit is None or len(commit.rstrip("+")) == 40
