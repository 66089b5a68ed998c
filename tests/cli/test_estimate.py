"""`mbrl train --estimate` is near what a run then takes, and leaves nothing behind."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from mbrl.cli import estimate
from mbrl.cli.configured import run_configured
from mbrl.compose import composed
from mbrl.errors import UserError
from mbrl.estimating import measure as measuring
from mbrl.training import check, run
from tests.command import run_command
from tests.test_training import TOY

pytestmark = pytest.mark.process
LONGER = ["total_env_steps=300", "checkpoint_every=100", "eval.every=150"]  # seconds


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow  # it compares times, which other processes change
@pytest.mark.parametrize("agent", ["drqv2", "mbpo"])
def test_a_run_takes_what_was_estimated(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.7)
    config = composed([f"agent={agent}", "experiment=smoke", *TOY, *LONGER, "run_dir=runs/toy"])
    check(config)
    measured = measuring.measure(config)
    assert not Path("runs").exists()
    folder = run(config)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    seconds = max(json.loads(line).get("wall_time", 0.0) for line in lines)
    assert 0.5 < measured.hours * 3600 / seconds < 2, measured.seconds
    written = [file for part in ("replay", "checkpoints") for file in (folder / part).rglob("*")]
    size = sum(file.stat().st_size for file in written)
    assert 0.5 < measured.disk / size < 2, (measured.disk, size)


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_deterministic_run_is_measured_with_its_algorithms(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU they are slower."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(measuring, "_measure", lambda config, folder: torch.are_deterministic_algorithms_enabled())
    config = composed(["agent=random", *TOY, f"deterministic={deterministic}"])
    assert measuring.measure(config) is deterministic


SWEEP = ["--multirun", "--estimate", "agent=random", "seed=0,1", *TOY]


def require_estimate_of_sweep(output: str, errors: str) -> None:
    header, row, total = output.splitlines()
    assert header.split() == ["run", "runs", "env", "steps/s", "hours", "memory", "GPU", "memory", "disk"]
    assert row.split()[:2] == ["random", "2"]
    assert total.startswith("all 2 runs: ") and "measuring random on toy (1 of 1)" in errors
    assert list(Path.cwd().iterdir()) == []


def test_a_sweep_is_estimated_and_no_folder_is_claimed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    monkeypatch.setattr(subprocess, "run", in_this_process)
    assert run_configured("train", SWEEP) == 0
    require_estimate_of_sweep(*capsys.readouterr())


def in_this_process(command: list[str], *, input: str, **_: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` runs the program that measures."""
    assert command == [sys.executable, "-m", estimate.__name__]
    output = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(sys, "stdin", StringIO(input))
        code = estimate.main()
    return subprocess.CompletedProcess(command, code, output.getvalue())


@pytest.mark.slow
def test_a_sweep_is_estimated_in_processes_of_their_own() -> None:
    """`pytest -m slow tests/cli/test_estimate.py`: measures for as long as users wait, 10 seconds of CPU time."""
    done = run_command("train", *SWEEP)
    assert done.returncode == 0, done.stderr
    require_estimate_of_sweep(done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--estimate", "--cfg", "job", *TOY], "--estimate and --cfg exclude each other"),
        (["--estimate", *TOY, "seed=x"], "seed=x is not allowed: it must be a whole number"),
    ],
)
def test_an_estimate_of_what_cannot_be_run_is_one_clear_line(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run_configured("train", arguments)
    with pytest.raises(UserError, match="no option '--estimate'"):
        run_configured("pretrain", ["--estimate"])
