"""`mbrl status`: what is read of run folders, and what is said of them."""

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from mbrl.results.status import duration, seconds_left, status, summary
from mbrl.run_folder.paths import TRAINED_ON
from mbrl.run_folder.provenance import read_starts
from mbrl.run_folder.state import FAILURE, MAY_LACK_SUCCESS, RunState, latest_env_steps, run_folders, run_state

TOTAL = 1000


def make_run(folder: Path, *, env_steps: int = 0, success: float | None = None, wall_time: float = 50.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"total_env_steps: {TOTAL}\n")
    if env_steps:
        rows = [{"env_steps": env_steps, "wall_time": wall_time}, {"env_steps": env_steps, "eval/success": success}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"env_st')
    if success is not None:
        (folder / "eval.csv").write_text(f"step,success,seed\n0,0,0\n{env_steps},{success},0\n")
    return folder


def finished(folder: Path) -> Path:
    for name in ("checkpoints/checkpoint-000000000500", f"checkpoints/checkpoint-{TOTAL:012}"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")
    (folder / "curve.png").touch()
    return folder


def test_each_state(tmp_path: Path) -> None:
    running = make_run(tmp_path / "running", env_steps=250, success=0.3)
    assert run_state(running) == RunState(running, "running", 250, TOTAL, 0.3, 150.0)
    waiting = make_run(tmp_path / "waiting")
    assert run_state(waiting) == RunState(waiting, "waiting", 0, TOTAL, None, None)
    done = finished(make_run(tmp_path / "done", env_steps=TOTAL, success=1.0))
    assert latest_env_steps(done) == TOTAL
    assert run_state(done) == RunState(done, "done", TOTAL, TOTAL, 1.0, 0.0)
    stopped = make_run(tmp_path / "stopped", env_steps=500)
    os.utime(stopped / "metrics.jsonl", (0, 0))
    failed = make_run(tmp_path / "failed", env_steps=500)
    (failed / FAILURE).write_text("ValueError: no")
    states = [run_state(folder) for folder in (stopped, failed)]
    assert [state.state for state in states if state] == ["stopped", "failed"]


def test_a_world_model_that_was_trained_without_a_run_is_no_run(tmp_path: Path) -> None:
    run, model = make_run(tmp_path / "runs" / "run"), finished(make_run(tmp_path / "runs" / "model"))
    assert run_folders(tmp_path / "runs") == [model, run]
    (model / TRAINED_ON).write_text("{}")
    assert run_folders(tmp_path / "runs") == [run]


def test_foreign_and_torn_configurations_are_no_runs(tmp_path: Path) -> None:
    for name, text in (("foreign", "name: x\n"), ("torn", "total_env_st: [\n"), ("list", "- 1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
        assert run_state(tmp_path / name) is None


def test_the_time_left_counts_what_waits_at_the_pace_of_what_runs(tmp_path: Path) -> None:
    runs = [
        RunState(tmp_path, "running", 500, 1000, None, 60.0), RunState(tmp_path, "running", 0, 1000, None, None),
        RunState(tmp_path, "waiting", 0, 1000, None, None), RunState(tmp_path, "done", 1000, 1000, 1.0, 0.0),
    ]  # fmt: skip
    assert seconds_left(runs) == (60.0 + 120.0 + 120.0) / 2, "the one without a pace has all before it"
    assert summary(runs) == "1 of 4 done, 2 running, 1 waiting; about 2 min left"
    assert seconds_left(runs[2:]) is None
    ending = RunState(tmp_path, "running", 1000, 1000, 1.0, 0.0)
    assert seconds_left([ending]) == 0.0 and seconds_left([ending, runs[2]]) is None
    assert summary(runs[2:]) == "1 of 2 done, 1 waiting"


def test_the_time_left_is_never_below_that_of_a_run(tmp_path: Path) -> None:
    slow, fast = (RunState(tmp_path, "running", 500, 1000, None, left) for left in (36000.0, 360.0))
    assert seconds_left([slow, fast]) == 36000.0
    begun = [RunState(tmp_path, "running", 0, 1000, None, None)] * 3
    assert seconds_left([slow, *begun]) == (36000.0 + 3 * 72000.0) / 4


def test_durations() -> None:
    told = [duration(seconds) for seconds in (8, 61, 3600, 3 * 3600 + 605)]
    assert told == ["8 s", "1 min", "1 h 00 min", "3 h 10 min"]


@pytest.mark.parametrize("watch", [None, 0.01])
def test_the_overview_names_every_run(tmp_path: Path, watch: float | None) -> None:
    finished(make_run(tmp_path / "sac" / "hammer" / "seed0", env_steps=TOTAL, success=0.95))
    stopped = make_run(tmp_path / "mbpo" / "hammer" / "seed0", env_steps=250, success=0.3)
    os.utime(stopped / "metrics.jsonl", (0, 0))
    console = Console(record=True, width=100)
    status(tmp_path, watch, console)
    shown = console.export_text()
    assert "sac/hammer/seed0" in shown and "1000/1000" in shown and "0.95" in shown
    assert "stopped" in shown and "25%" in shown and "1 of 2 done, 1 stopped" in shown


def test_a_run_without_any_success_shows_its_return(tmp_path: Path) -> None:
    gym = finished(make_run(tmp_path / "gym", env_steps=TOTAL))
    (gym / "config.yaml").write_text(f"total_env_steps: {TOTAL}\nenv: {{_target_: {MAY_LACK_SUCCESS[0]}}}\n")
    finished(make_run(tmp_path / "metaworld", env_steps=TOTAL, success=0.0))
    for success, returned, shown in (("0", -3.5, ["-3.5"]), ("0.5", None, ["0.50"])):
        (gym / "eval.csv").write_text(f"step,success,seed,return\n500,{success},0,7\n{TOTAL},{success},0,-3.5\n")
        state = run_state(gym)
        assert state is not None and state.returned == returned
        console = Console(record=True, width=100)
        status(tmp_path, console=console)
        head, *lines = console.export_text().splitlines()
        assert ("return" in head) == (returned is not None)
        assert [line.split()[4:] for line in lines[:2]] == [shown, ["0.00"]]


def test_no_run_lies_in_another(tmp_path: Path) -> None:
    for name in ("a/seed0", "a/seed0/wandb/run/files", "b/seed0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
    assert run_folders(tmp_path) == [tmp_path / "a/seed0", tmp_path / "b/seed0"]


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        status(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no run folders"):
        status(tmp_path)
    (tmp_path / "config.yaml").write_text("x: 1\n")
    with pytest.raises(ValueError, match=r"no run whose config\.yaml can be read"):
        status(tmp_path)


def test_a_configuration_above_hides_no_run_and_links_are_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "elsewhere" / "run", env_steps=250)
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "config.yaml").write_text("name: a project\n")
    (runs / "linked").symlink_to(run)
    (runs / "again").symlink_to(runs)
    make_run(runs / "a" / "seed0")
    assert run_folders(runs) == [runs / "a/seed0", runs / "linked"]


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    for name in ("[bold]x[/bold]", "[/nothing]", "back\\", "line\nbreak"):
        make_run(tmp_path / "runs" / name)
    console = Console(width=200, record=True)
    status(tmp_path / "runs", console=console)
    text = console.export_text()
    assert all(name in text for name in ("[bold]x[/bold]", "[/nothing]", "back\\", "line break"))


@pytest.mark.parametrize("row", ["[" * 900 + "]" * 900, "7", '{"env_steps": 1' + "0" * 400 + "}", '{"env_steps": -1}'])
def test_rows_that_no_run_wrote_are_passed_over(tmp_path: Path, row: str) -> None:
    run = make_run(tmp_path / "run", env_steps=250)
    for file in ("metrics.jsonl", "starts.jsonl"):
        with (run / file).open("a") as stream:
            stream.write(f"\n{row}\n")
    state = run_state(run)
    assert state is not None and state.env_steps == 250
    assert all(isinstance(start, dict) for start in read_starts(run))
