"""The run's files: written row by row, cut back to the checkpoint on resume, readable after a kill."""

import json
import math
import os
import shutil
import time
from io import FileIO
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbrl.run_folder.logger import EVAL_HEADER, Logger, MetricsWriter
from mbrl.run_folder.progress import Progress


def test_events_go_on_where_their_folder_is_removed_under_the_run(tmp_path):
    writer = MetricsWriter(tmp_path, "env_steps", -1)
    for step in range(5):
        if step == 3:
            writer._board.flush()
            shutil.rmtree(tmp_path / "tensorboard")
        writer.write({"env_steps": step, "wall_time": 1.0}, {"policy/loss": 0.5})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("policy/loss")][-2:] == [3, 4]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


class Scores:
    def __init__(self, success: float) -> None:
        self.success = success

    def summary(self) -> dict[str, float]:
        return {"success": self.success, "return": 12.5, "steps_to_success": math.nan}

    def success_of_tasks(self) -> dict[str, float]:
        return {}


def write_steps(logger: Logger, first: int, last: int) -> None:
    for step in range(first, last + 1, 100):
        logger.tick()
        logger.log(
            {"policy/loss": torch.tensor(step / 7), "collect/success": 0.5},
            env_steps=step,
            agent_steps=step // 2,
            gradient_steps=step // 4,
            wall_time=step / 50,
        )
        if step % 200 == 0:
            logger.log_eval(Scores(step / 1000), env_steps=step, seed=3)
    logger.close()


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "wall_time" and not k.startswith("time/")} for row in rows(run)]


def test_rows_carry_counters_and_metrics_and_null_for_what_is_no_number(tmp_path: Path) -> None:
    write_steps(Logger(tmp_path, 400), 100, 400)
    first, second, evaluation = rows(tmp_path)[:3]
    assert first.pop("time/busy_cores") >= 0
    assert first == {
        "env_steps": 100, "agent_steps": 50, "gradient_steps": 25, "wall_time": 2.0,
        "policy/loss": pytest.approx(100 / 7), "collect/success": 0.5,
    }  # fmt: skip
    assert second["time/updates_per_second"] == pytest.approx(25 / 2)
    assert evaluation == {
        "env_steps": 200, "eval/success": 0.2, "eval/return": 12.5, "eval/steps_to_success": None,
    }  # fmt: skip
    assert (tmp_path / "eval.csv").read_text() == f"{EVAL_HEADER}\n200,0.2,3,12.5\n400,0.4,3,12.5\n"


def test_a_row_is_on_the_disk_when_log_returns(tmp_path: Path) -> None:
    logger = Logger(tmp_path, 100)
    logger.log({}, env_steps=1, agent_steps=1, gradient_steps=0, wall_time=0.1)
    assert rows(tmp_path)[0]["env_steps"] == 1
    logger.close()


def test_a_resumed_run_writes_what_an_uninterrupted_one_writes(tmp_path: Path) -> None:
    write_steps(Logger(tmp_path / "whole", 800), 100, 800)
    broken = tmp_path / "broken"
    write_steps(Logger(broken, 800), 100, 600)
    with (broken / "metrics.jsonl").open("a") as metrics, (broken / "eval.csv").open("a") as evals:
        metrics.write('{"env_steps": 1')  # both files torn, as by a kill
        evals.write("7")
    write_steps(Logger(broken, 800, resume_env_steps=400), 500, 800)
    assert untimed(broken) == untimed(tmp_path / "whole")
    assert (broken / "eval.csv").read_text() == (tmp_path / "whole" / "eval.csv").read_text()
    assert not list(broken.glob("*.tmp"))


def test_a_run_of_an_earlier_version_goes_on_with_its_columns(tmp_path: Path) -> None:
    write_steps(Logger(tmp_path, 400), 100, 200)
    (tmp_path / "eval.csv").write_text("step,success,seed\n200,0.2,3\n")
    write_steps(Logger(tmp_path, 400, resume_env_steps=200), 300, 400)
    assert (tmp_path / "eval.csv").read_text() == "step,success,seed\n200,0.2,3\n400,0.4,3\n"
    write_steps(Logger(tmp_path, 400), 100, 200)
    assert (tmp_path / "eval.csv").read_text() == f"{EVAL_HEADER}\n200,0.2,3,12.5\n"


def test_a_new_run_starts_its_files_anew(tmp_path: Path) -> None:
    write_steps(Logger(tmp_path, 400), 100, 400)
    write_steps(Logger(tmp_path, 400), 100, 200)
    assert [row["env_steps"] for row in rows(tmp_path)] == [100, 200, 200]
    assert (tmp_path / "eval.csv").read_text() == f"{EVAL_HEADER}\n200,0.2,3,12.5\n"


def test_a_long_evaluation_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Logger(tmp_path, 800)
    os.utime(tmp_path / "metrics.jsonl", (1, 1))
    logger.heartbeat()
    assert (tmp_path / "metrics.jsonl").stat().st_mtime == 1, "not at every call"
    monkeypatch.setattr("mbrl.run_folder.logger.HEARTBEAT_SECONDS", 0.0)
    logger.heartbeat()
    assert (tmp_path / "metrics.jsonl").stat().st_mtime > 1


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    write_steps(Logger(tmp_path, 800), 100, 600)
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which begin with the second they are from
    write_steps(Logger(tmp_path, 800, resume_env_steps=400), 500, 800)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("policy/loss")] == list(range(100, 801, 100))
    assert [event.step for event in events.Scalars("eval/success")] == [200, 400, 600, 800]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    logger = Logger(tmp_path, 100)
    logger._metrics._rows = FileIO(full, "a")
    with pytest.raises(OSError, match="No space left on device") as caught:
        logger.log({}, env_steps=1, agent_steps=1, gradient_steps=1, wall_time=1.0)
    assert caught.value.filename == full
    logger.close()


def test_progress_says_success_rate_pace_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(total=1000, start=400)
    began = progress._began
    for _ in range(30):
        progress.tick()
    progress.advance(500, success=0.25)
    assert progress.describe(began + 10) == "success 0.25, 3.0 updates/s, 00:50 left"
    progress.close()
    assert "500/1000 env steps" in capsys.readouterr().err


def test_progress_says_the_return_until_there_is_a_success() -> None:
    for may_lack_success, first in ((True, "return -3.5"), (False, "success 0.00")):
        progress = Progress(total=1000, may_lack_success=may_lack_success)
        for success, shown in ((0.0, first), (0.5, "success 0.50"), (0.0, "success 0.00")):
            progress.advance(100, success=success, returned=-3.5)
            assert progress.describe(progress._began + 10).startswith(f"{shown}, ")
        progress.close()
