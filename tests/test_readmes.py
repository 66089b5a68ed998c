"""The README files name what there is: every command is accepted, every file exists, every name of Python resolves."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from hydra.errors import HydraException

from mbrl.compose import groups
from tests.readme_checks import OURS, check_agent, check_command, check_names, resolves, wrong_in, wrong_path
from tests.readmes import (
    INLINE,
    OTHERS,
    PROGRAMS,
    ROOT,
    Snippet,
    blocks,
    commands,
    leads_somewhere,
    links,
    readmes,
    spans,
    trees,
)

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("readmes")]  # whole commands; names are collected once

STUDIES = ROOT / "runs" / "reference"
ALL = readmes()
CODE = [block for readme in ALL for block in blocks(readme)]
# A command that several READMEs show is checked once. A block replaces INLINE, because it is checked more strictly.
SHOWN = sorted((each for readme in ALL for each in commands(readme)), key=lambda each: each.language != INLINE)
COMMANDS = [
    pytest.param(each, marks=pytest.mark.slow if STUDIES in each.readme.parents else ())  # 15 s together
    for each in {each.text: each for each in SHOWN}.values()
]


@pytest.mark.parametrize("snippet", COMMANDS, ids=str)
def test_commands_are_accepted(snippet: Snippet, tmp_path: Path) -> None:
    for command in re.split(r" && | \| |; ", snippet.text):
        words = shlex.split(command)
        assert words[0] in (*PROGRAMS, *OTHERS) or "=" in words[0], f"{snippet}: an unknown program"
        check_command(words, tmp_path, whole=snippet.language != INLINE)


@pytest.mark.parametrize("block", [block for block in CODE if block.language == "python"], ids=str)
def test_names_in_python_exist(block: Snippet) -> None:
    check_names(block.text)


@pytest.mark.parametrize("block", [block for block in CODE if block.language == "yaml"], ids=str)
def test_agents_in_yaml_compose(block: Snippet, tmp_path: Path) -> None:
    assert yaml.safe_load(block.text)["name"]  # every block of yaml shows an agent
    for name in re.findall(r"_target_: *([\w.]+)", block.text):
        assert name.split(".")[0] not in OURS or resolves(name), f"there is no {name}"
    check_agent(block.text, tmp_path)
    for name in re.findall(r"_target_: *([\w.]+)", block.text):
        assert name.split(".")[0] not in OURS or resolves(name), f"there is no {name}"


@pytest.mark.parametrize("tree", [tree for readme in ALL for tree in trees(readme)], ids=str)
def test_files_in_trees_exist(tree: Snippet) -> None:
    wrong = [line for line in tree.text.splitlines() if wrong_path(line.split()[0], tree.readme.parent)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("readme", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_options_and_settings_exist(readme: Path) -> None:
    wrong = [f"{link}: no such file or heading" for link in links(readme) if not leads_somewhere(link)]
    checked = [(span, wrong_in(span.text, readme.parent)) for span in spans(readme)]
    wrong += [f"{span}: {error}" for span, error in checked if error]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("table", re.findall(r"^\| *`agent=`.*\n\|[-| ]+\n((?:\|.*\n)+)", ALL[0].read_text(), re.M))
def test_agents_in_tables_exist(table: str) -> None:
    first = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert first and set(first) <= set(groups()["agent"])


def test_citation_has_the_version_of_the_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize(
    "command",
    [
        "mbrl tran agent=sac", "mbrl train agent=sax", "mbrl train agent=sac agent.lrr=1", "mbrl train --resume",
        "mbrl train collect.frames_per_batch=7", "mbrl evaluate RUN --episode-count 3", "mbrl collect hammr",
        "mbrl collect hammer --policy clever", "mbrl bench nothing", "mbrl pretrain dat=x", "make tests",
        "make test ARGS='-m fast'", "make train ARGS='agent=sax'", "pip install -e '.[gpu]'",
        "pip install 'mbrl[ray]'", "python -m tests.nothing", "python -m tests.faults --quick", "python nothing.py",
        "torchrun --nproc-per-node 2 -m mbrl pretrain dat=x", "mbrl train --multirun launch=here",
    ],
)  # fmt: skip
def test_wrong_commands_are_found(command: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ValueError, HydraException)):
        check_command(shlex.split(command), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "--nothing", "mbrl/nothing.py", "nothing.py", "configs/agent/nothing.yaml", "runs/reference/nothing.csv",
        "agent=nothing", "agent.nothing=1", "collect.nothing", "mbrl.nothing", "worldmodel.base.nothing",
    ],
)  # fmt: skip
def test_wrong_names_are_found(text: str) -> None:
    assert wrong_in(text, ROOT)


@pytest.mark.parametrize(
    "code",
    [
        "import mbrl.nothing", "from mbrl import nothing", "import mbrl\nmbrl.nothing()",
        "from mbrl import build\nbuild.build_policy(nothing=1)",
    ],
)  # fmt: skip
def test_wrong_python_is_found(code: str) -> None:
    with pytest.raises((ImportError, AttributeError, AssertionError)):
        check_names(code)
