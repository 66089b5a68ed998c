"""Where a run came from: the command, the code, the packages and the machine of each of its starts."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mbrl.run_folder.plain_json import parse_json

DISTRIBUTION = "mbrl-suite"  # the name of this project in pyproject.toml and for pip
NAMED_PACKAGES = ("torch", "torchrl", "tensordict", "metaworld", "mujoco", "gymnasium", "hydra-core")
# The arguments of `mbrl train` that stand for a call of `mbrl.train`, for the command that the run folder records.
settings_given: ContextVar[tuple[str, ...] | None] = ContextVar("settings_given", default=None)
STARTS = "starts.jsonl"  # in a run's folder, one line for each time that it was started or gone on with


def record_start(folder: Path, env_steps: int) -> None:
    """Append this start of the run in `folder`, which goes on from so many env steps."""
    line = json.dumps({"env_steps": env_steps, **describe_process()}) + "\n"
    with (folder / STARTS).open("a", encoding="utf-8") as stream:
        stream.write(line)


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """A run's starts, the last one last; a line that was broken off, or is no object, is left out."""
    file = folder / STARTS
    starts: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if file.is_file() else ():
        try:
            start = parse_json(line)
        except ValueError:
            continue
        if isinstance(start, dict):
            starts.append(start)
    return starts


def describe_process() -> dict[str, Any]:
    """This process: time (UTC), command, commit, packages and hardware."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "commit": _commit(),
        "packages": {"mbrl": _version(DISTRIBUTION), **{name: _version(name) for name in NAMED_PACKAGES}},
        "python": platform.python_version(),
        "hardware": hardware,
    }


def _command() -> str:
    """The command that makes this run; of a job of a sweep the one that makes this job alone."""
    from hydra.core.hydra_config import HydraConfig

    given = settings_given.get()
    if given is not None:
        return shlex.join(["mbrl", "train", *given])
    if HydraConfig.initialized():
        settings = HydraConfig.get()
        own = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
        folder = [word for path in own for word in ("--config-dir", path)]
        searched = [line for line in settings.overrides.hydra if line.lstrip("+").startswith("hydra.searchpath=")]
        return shlex.join(["mbrl", "train", *folder, *searched, *settings.overrides.task])
    return shlex.join(sys.argv)


def _commit() -> str | None:
    """The commit of the code, with a + where files differ from it; None where it is no checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, check=True)
        return done.stdout.decode(errors="replace").strip()

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "") if tracked else None
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
