"""What a sweep does in a process apart, to keep GPUs free: each kind of job is built there, and errors are one line."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mbrl.cli.apart import process_apart
from mbrl.cli.sweep import prepare
from mbrl.errors import UserError
from mbrl.training import check
from tests.test_training import TOY

pytestmark = pytest.mark.process


def test_jobs_on_a_gpu_are_built_in_a_process_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built on the GPU would stay there until the sweep ends."""
    built: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mbrl.cli.sweep.find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("mbrl.cli.sweep.require_sizes", None)
    here = nullcontext(lambda work, config, sizes: built.append(config.agent.name))
    monkeypatch.setattr("mbrl.cli.sweep.process_apart", lambda: here)
    prepare(["agent=sac,random", "seed=0,1", *TOY], check)
    assert built == ["sac", "random"]


def test_an_error_of_a_process_apart_is_one_line(tmp_path: Path) -> None:
    with process_apart() as apart:
        assert apart(os.getpid) == apart(os.getpid) != os.getpid()
        with pytest.raises(UserError, match=r"nothing: No such file or directory$"):
            apart((tmp_path / "nothing").read_text)


def test_a_process_apart_that_was_killed_is_one_line() -> None:
    with pytest.raises(UserError, match="was killed: there may be too little memory"), process_apart() as apart:
        apart(os._exit, 9)
