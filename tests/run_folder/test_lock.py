"""One process at a time in a run's folder; another can see whether there is one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

import mbrl.training
from mbrl.cli.sweep import run_job
from mbrl.run_folder import lock
from mbrl.run_folder.lock import LOCK, FolderInUse, FolderLock, is_locked
from mbrl.run_folder.state import FAILURE, run_state

HOLD = """
import pathlib, sys
from mbrl.run_folder.lock import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
print(1, flush=True)
input()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `tmp_path` until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.process
def test_a_second_process_is_refused_until_the_first_has_died(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PAUSE", 0.0)
    assert is_locked(tmp_path) is True
    with pytest.raises(FolderInUse, match="wait for it, or stop it"):
        FolderLock(tmp_path)
    holder.kill()
    holder.wait()
    assert is_locked(tmp_path) is False
    FolderLock(tmp_path).release()


def test_where_it_cannot_be_told(tmp_path: Path) -> None:
    assert is_locked(tmp_path) is None, "it was never locked"
    (tmp_path / LOCK).write_text("elsewhere")
    assert is_locked(tmp_path) is None, "another machine's"


@pytest.mark.process
def test_a_killed_run_is_seen_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "config.yaml").write_text("total_env_steps: 10\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"env_steps": 5, "wall_time": 1.0}) + "\n")
    state = run_state(tmp_path)
    assert state is not None and state.state == "running"
    holder.kill()
    holder.wait()
    state = run_state(tmp_path)
    assert state is not None and state.state == "stopped"


@pytest.mark.process
def test_training_does_not_enter_and_a_sweep_leaves_it_out(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "PAUSE", 0.0)
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("train", [f"run_dir={tmp_path}", "env=toy", "agent=random"])
    with pytest.raises(FolderInUse):
        mbrl.training.run(config)
    assert not (tmp_path / "config.yaml").exists()
    assert run_job(config, mbrl.training.run, alone=True) is None
    assert "skipped: " in caplog.text and not (tmp_path / FAILURE).exists()
