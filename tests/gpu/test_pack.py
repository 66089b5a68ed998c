"""What pack.sh packs for a machine without network is all that this project needs there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "tests" / "gpu" / "pack.sh").read_text()


def test_every_dependency_is_packed_or_named_as_there_or_left_out() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {re.split("[=<>]", given)[0].lower() for given in settings["project"]["dependencies"]}
    known = set(re.findall(r"[a-z0-9_-]+", SCRIPT.lower()))
    assert {name.replace("_", "-") for name in needed} <= {name.replace("_", "-") for name in known}


@pytest.mark.process
def test_no_command_for_that_machine_needs_what_is_left_out() -> None:
    left_out = ("imageio_ffmpeg", "rliable", "arch", "dm_control", "aiohttp")
    modules = "mbrl.training, mbrl.pretraining.pretrain, mbrl.collecting.collect, mbrl.bench.gpu, mbrl.cli.main"
    code = f"import sys; sys.modules.update(dict.fromkeys({left_out})); import {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
