"""The set-up, with stand-ins for Python and the system: what it does where something is missing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
TOOLS = ("make", "sh", "bash", "sed", "rm", "touch", "uname", "grep", "id", "cat", "mkdir", "env")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile and what it depends on, and `bin/` with the few tools it may call."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        if path:
            (tmp_path / "bin" / tool).symlink_to(path)
    if not (tmp_path / "bin" / "make").exists():
        pytest.skip("make is not installed")
    return tmp_path


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(project / "bin"), "HOME": str(project)}
    return subprocess.run(["make", *arguments], cwd=project, env=environment, capture_output=True, text=True)


def stand_in(file: Path, script: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def stamp(file: Path, seconds: int) -> None:
    file.touch()
    os.utime(file, (seconds, seconds))


def set_up(project: Path, python: str = "exit 0") -> None:
    stand_in(project / ".venv" / "bin" / "python", python)
    for age, name in enumerate(("constraints.txt", "pyproject.toml", ".venv/.installed", ".venv/.gl")):
        stamp(project / name, 1_000_000 + age)


def test_help_names_every_command(project: Path) -> None:
    shown = make(project).stdout
    assert all(f"make {target}" in shown for target in ("train", "test", "bench", "lint"))


def test_no_python_is_said_in_one_line(project: Path) -> None:
    stand_in(project / "bin" / "python3", "exit 1")  # too old
    result = make(project, "setup")
    assert result.returncode != 0
    assert "mbrl: error: no Python 3.11, 3.12 or 3.13 found" in result.stderr
    assert not (project / ".venv").exists()


def test_a_python_that_cannot_make_an_environment_leaves_none_behind(project: Path) -> None:
    stand_in(project / "bin" / "python3", 'if [ "$2" = venv ]; then mkdir -p .venv/bin; exit 1; fi')
    result = make(project, "setup")
    assert result.returncode != 0
    assert "apt-get install python3-venv" in result.stderr
    assert not (project / ".venv").exists()


def test_a_second_call_finds_everything_done(project: Path) -> None:
    set_up(project)
    assert make(project, "--question", "setup").returncode == 0


@pytest.mark.parametrize("changed", ["constraints.txt", "pyproject.toml"])
def test_a_changed_pin_installs_again(project: Path, changed: str) -> None:
    set_up(project, 'echo "$@" >> pip.log')
    stamp(project / changed, 2_000_000)
    assert make(project, "setup").returncode == 0
    assert "--constraint constraints.txt --editable .[dev]" in (project / "pip.log").read_text()


def test_without_opengl_and_root_the_line_to_run_is_printed(project: Path) -> None:
    set_up(project, "exit 1")
    (project / ".venv" / ".gl").unlink()
    stand_in(project / "bin" / "id", "echo 1000")
    result = make(project, "setup")
    assert result.returncode != 0
    assert "run: sudo apt-get install -y libegl1 libgl1 libopengl0" in result.stderr
    assert not (project / ".venv" / ".gl").exists()


def test_root_installs_the_opengl_libraries(project: Path) -> None:
    set_up(project, "test -e installed")
    (project / ".venv" / ".gl").unlink()
    stand_in(project / "bin" / "id", "echo 0")
    stand_in(project / "bin" / "apt-get", 'case "$*" in *"install"*libegl1*) touch installed;; esac')
    result = make(project, "setup")
    assert result.returncode == 0, result.stderr
    assert (project / ".venv" / ".gl").exists()
