"""The container file names what the project has: its packages, OpenGL libraries and a Python that it allows."""

import re
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / ".ci" / "Containerfile").read_text()


def instructions(name: str) -> list[str]:
    whole = re.sub(r"\\\n\s*", "", TEXT)
    return [line.split(maxsplit=1)[1] for line in whole.splitlines() if line.startswith(f"{name} ")]


def test_it_copies_every_package_and_what_installing_needs() -> None:
    copied = [name for line in instructions("COPY") for name in line.split()[:-1]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    needed = [*packages, "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    assert set(copied) == {*needed, "constraints.txt"}
    assert all((ROOT / name).exists() for name in copied)


def test_python_and_opengl_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", instructions("FROM")[0])
    assert version and version[1] in SpecifierSet(project["requires-python"])
    assert f"Python {version[1]}" in (ROOT / "constraints.txt").read_text(), "the constraints were tested with another"
    libraries = re.search(r"^GL_PACKAGES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    installed = re.search(r"apt-get install [^&]*", TEXT.replace("\\\n", ""))
    assert libraries and installed and set(libraries[1].split()) <= set(installed[0].split())


def test_it_starts_the_command() -> None:
    assert instructions("ENTRYPOINT") == ['["mbrl"]'] and instructions("CMD") == ['["--help"]']
