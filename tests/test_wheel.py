"""The wheel: what `pip install` of it brings."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "mbrl", "policies", "worldmodel")


def test_the_wheel_holds_every_file_that_the_packages_read(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")  # the build's own, so that it needs no network
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert wheel.name.startswith(f"mbrl_suite-{project['version']}-")
    shipped = {name for name in ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    files = {file.relative_to(source).as_posix() for name in PACKAGES for file in (source / name).rglob("*.*")}
    assert shipped == {name for name in files if not name.endswith(".md")}
    assert {"configs/agent/sac.yaml", "mbrl/results/reference.csv", "mbrl/play/page.html"} <= shipped
