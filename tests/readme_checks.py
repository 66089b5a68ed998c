"""Checks of what a README names: raise an error for a command, a file, an option or a Python name that is not there."""

import ast
import inspect
import os
import re
import shlex
import subprocess
import tomllib
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser

import mbrl.bench
import mbrl.pretraining.pretrain
import mbrl.training
from mbrl.cli.configured import ESTIMATE
from mbrl.cli.main import CONFIGURED, build_parser
from mbrl.collecting.collect import POLICIES
from mbrl.compose import check_overrides, composed_jobs, groups, settings_of
from mbrl.envs.simulator import resolve_task
from tests.conftest import TIERS
from tests.readmes import FOLDERS, ROOT

CHECKS = {"train": mbrl.training.check, "pretrain": mbrl.pretraining.pretrain.check}
PLACEHOLDER = re.compile(r"<?[A-Z][A-Z_]*>?")
VALUES = {
    "agent": "drqv2",
    "experiment": "smoke",
    "policy": "sac",
    "env.task": "reach",
    "seed": "0",
}  # for placeholders
# what runs write, and the first parts of the names of metrics
OF_A_RUN = {
    "collect", "world_model", "imagination", "calibration", "model_error", "policy", "eval", "time", "tensorboard",
    "checkpoints", "replay",
}  # fmt: skip
OWN = ("mine", "my_agents", "my_project")  # what a README calls a reader's own modules
OURS = ("mbrl", "worldmodel", "policies", "configs", "tests")


def check_command(words: list[str], folder: Path, *, whole: bool = True) -> None:
    """Raise an error where the command would be refused.

    Args:
        words: the program and its arguments.
        folder: an empty one, for what the command needs.
        whole: whether arguments that are required must be there; a text may mention `mbrl evaluate` without a run.
    """
    while words and re.match(r"[A-Z_]+=", words[0]):  # variables of the environment
        words = words[1:]
    program, *arguments = [re.sub(r"\$\w+", _variable, word).removesuffix("...").removesuffix("…") for word in words]
    arguments = [word for word in arguments if word]
    if program == "mbrl":
        check_mbrl(arguments, folder, whole)
    elif program == "make":
        check_make(arguments, folder)
    elif program == "pip":
        check_pip(arguments)
    elif program == "pytest":
        check_pytest(arguments)
    elif program in ("python", "torchrun"):
        check_python(arguments, folder, whole)


def _variable(found: re.Match[str]) -> str:
    """A value for a variable of the shell."""
    return "0" if found[0] == "$seed" else "VALUE"


def check_mbrl(arguments: list[str], folder: Path, whole: bool = True) -> None:
    if arguments[:1] and arguments[0] in CONFIGURED:
        check_configured(arguments[0], arguments[1:], folder, whole)
    elif arguments != ["--version"] and "--help" not in arguments and "-h" not in arguments:
        check_verb(arguments, whole)


def check_configured(command: str, arguments: list[str], folder: Path, whole: bool) -> None:
    """Compose every configuration that the arguments ask for, and check it as the command does."""
    ours = ("-h", "--help", *([ESTIMATE] if command == "train" else []))
    parsed, unknown = get_args_parser().parse_known_args([word for word in arguments if word not in ours])
    assert not unknown, f"mbrl {command} has no option {unknown[0]}"
    config_dir = parsed.config_dir and own_agents(folder)
    overrides = []
    for override in parsed.overrides:
        override = re.sub(r"^(seed=\d+)(,\d+)+$", r"\1", override)  # nothing that is checked depends on the seed
        override = re.sub(r"^(env\.task=[\w-]+)(,[\w-]+)+$", _first_task, override)
        key, _, value = override.partition("=")
        if key == "agent" and config_dir:
            override = "agent=mine"
        elif PLACEHOLDER.fullmatch(value):
            override = f"{key}={VALUES.get(key.split('@')[0], value)}"
        if key == "launch":
            assert value in groups()["launch"], f"there is no launch={value}"
        elif key != "wandb":
            overrides.append(override)
    for _, config in composed_jobs(overrides, command, config_dir):
        if whole:
            CHECKS[command](config)


def _first_task(sweep: re.Match[str]) -> str:
    """The first of several tasks of Meta-World, on which nothing else that is checked depends, if all are there."""
    for name in sweep[0].removeprefix("env.task=").split(","):
        resolve_task(name)
    return sweep[1]


def check_agent(text: str, folder: Path) -> None:
    """Compose an agent of which a README shows the yaml, beside a world model `mine` that it may choose."""
    (folder / "worldmodel").mkdir()
    (folder / "worldmodel" / "mine.yaml").write_text("_target_: my_model.Mine\nlearning_rate: 1.0e-3\n")
    (folder / "agent").mkdir()
    (folder / "agent" / "shown.yaml").write_text(text)
    composed_jobs(["agent=shown"], "train", folder)


def own_agents(folder: Path) -> Path:
    """A folder for --config-dir with the agent `mine`."""
    own = folder / "own"
    (own / "agent").mkdir(parents=True, exist_ok=True)
    text = (ROOT / "configs" / "agent" / "drqv2.yaml").read_text()
    (own / "agent" / "mine.yaml").write_text(text.replace("name: drqv2", "name: mine"))
    return own


def check_verb(arguments: list[str], whole: bool) -> None:
    options = parse(command_line(), arguments, whole)
    for name in [*(options.get("tasks") or []), *([options["task"]] if options.get("task") else [])]:
        if name != "all" and not PLACEHOLDER.fullmatch(name):
            resolve_task(name)
    if settings := [word for word in options.get("train") or [] if "=" in word]:
        check_overrides(settings)
    for kind, known in (("policy", POLICIES), ("names", mbrl.bench.names())):
        for name in options.get(kind) or []:
            assert name in known or PLACEHOLDER.fullmatch(name), f"there is no {name}; there are {', '.join(known)}"


def parse(parser: ArgumentParser, arguments: list[str], whole: bool) -> dict[str, Any]:
    """The options; 1 stands for a placeholder that must be a number. {} where arguments may lack and do."""

    def refuse(message: str) -> None:
        raise ValueError(message)

    parsers = [parser, *_verbs(parser).values()]
    for each in parsers:
        each.error = refuse  # type: ignore[method-assign, assignment]
    for numbers in (False, True):
        after_option = [False, *(word.startswith("-") for word in arguments)]
        pairs = zip(arguments, after_option, strict=False)
        words = ["1" if numbers and after and PLACEHOLDER.fullmatch(word) else word for word, after in pairs]
        try:
            return vars(parser.parse_args(words))
        except ValueError as error:
            if not whole and "arguments are required" in str(error):
                known = _option_names(parsers)
                assert all(word.split("=")[0] in known for word in words if word.startswith("-")), f"{words}"
                return {}
            if numbers or "invalid" not in str(error):
                raise
    return {}


@cache
def command_line() -> ArgumentParser:
    """The parser of `mbrl`, built once."""
    return build_parser()[0]


def _verbs(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    actions = parser._subparsers._group_actions if parser._subparsers else []
    return dict(actions[0].choices or {}) if actions else {}


def _option_names(parsers: Sequence[ArgumentParser]) -> set[str]:
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


def check_make(arguments: list[str], folder: Path) -> None:
    """Check the targets, and what `make` would run for them."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    chosen = {word for word in arguments if "=" not in word}
    assert chosen <= targets, f"make has no target {chosen - targets}"
    inside = ("MFLAGS", "ARGS")  # variables that make hands to what it runs, as those that begin with MAKE
    outside = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key not in inside}
    command = ["make", "--dry-run", *arguments]  # as from a shell, also where `make test` runs this
    shown = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    check_command(shlex.split(shown.stdout.splitlines()[-1].removeprefix(".venv/bin/")), folder)


def check_pytest(arguments: list[str]) -> None:
    for before, expression in pairwise(arguments):
        if before == "-m":
            named = set(re.findall(r"\w+", expression)) - {"not", "and", "or"}
            assert named <= set(TIERS), f"no tier of tests is called {named - set(TIERS)}"
    for path in (word.split("::")[0] for word in arguments if word.startswith("tests")):
        assert (ROOT / path).exists(), f"there is no {path}"


def check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in arguments:
        found = re.fullmatch(r"(.*)\[([\w,]+)\](@.*| @ .*)?", word)
        if found:
            known = project["optional-dependencies"]
            assert set(found[2].split(",")) <= known.keys(), f"there is no extra {found[2]}; there are {list(known)}"
            assert found[1] in (".", project["name"]), f"{word} is another project: this one is {project['name']}"


def check_python(arguments: list[str], folder: Path, whole: bool) -> None:
    """`python -m MODULE ...`, `python FILE ...`, and torchrun, which takes the same after options of its own."""
    rest = arguments
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        rest = rest[1 if "=" in rest[0] or rest[0] == "--standalone" else 2 :]
    if rest[:2] == ["-m", "mbrl"]:
        check_mbrl(rest[2:], folder, whole)
    elif rest[:2] == ["-m", "pytest"]:
        check_pytest(rest[2:])
    elif rest[:1] == ["-m"]:
        module = find_spec(rest[1])
        assert module is not None, f"there is no module {rest[1]}"
        if rest[1].startswith("tests."):
            program = rest[1] + (".__main__" if module.submodule_search_locations else "")
            parse(import_module(program).build_parser(), rest[2:], whole)
    elif rest and not PLACEHOLDER.fullmatch(rest[0]):
        assert (ROOT / rest[0]).exists(), f"there is no file {rest[0]}"


def check_names(text: str) -> None:
    """Raise an error where Python code imports or calls what is not there, or passes an argument that is not there."""
    code = ast.parse(text)
    known: dict[str, Any] = {}
    for node in ast.walk(code):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= _imported(node)
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute):
            resolve(node, known)
        elif isinstance(node, ast.Call) and callable(function := resolve(node.func, known)):
            if inspect.isbuiltin(function):  # Has no signature, as torch.cat.
                continue
            parameters = inspect.signature(function).parameters.values()
            names = {parameter.name for parameter in parameters}
            free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
            wrong = [keyword.arg for keyword in node.keywords if keyword.arg and keyword.arg not in names]
            assert free or not wrong, f"{ast.unparse(node.func)} has no argument {wrong}"


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, Any]:
    """The names that an import binds, of this project and of others; not those of a reader's own modules."""
    if isinstance(node, ast.Import):
        modules = {alias.asname or alias.name.split(".")[0]: import_module(alias.name) for alias in node.names}
        return {name: module if "." in name else import_module(module.__name__) for name, module in modules.items()} | {
            alias.name.split(".")[0]: import_module(alias.name.split(".")[0])
            for alias in node.names
            if not alias.asname
        }
    if (node.module or "").split(".")[0] in OWN:
        return {}
    module = import_module(node.module or "")
    return {
        alias.asname or alias.name: getattr(module, alias.name, None) or import_module(f"{node.module}.{alias.name}")
        for alias in node.names
    }


def resolve(node: ast.expr, known: dict[str, Any]) -> Any:
    """What an expression such as `mbrl.load` names; None where it is no name of a module's content."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, known)
        return getattr(owner, node.attr) if inspect.ismodule(owner) or inspect.isclass(owner) else None
    return None


@cache
def settings() -> set[str]:
    """Every setting of every agent, and of pretraining."""
    found = set(settings_of("pretrain"))
    return found.union(*(settings_of("train", [f"agent={name}"]) for name in groups()["agent"]))


@cache
def attributes() -> set[str]:
    """The names of all functions, methods and classes of the project."""
    trees = [ast.parse(path.read_text()) for package in OURS[:3] for path in (ROOT / package).rglob("*.py")]
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}


@cache
def options() -> set[str]:
    """Every option of every command, of Hydra, and of the programs in tests/."""
    programs = [import_module(f"tests.{name}").build_parser() for name in ("kill_and_resume", "faults.__main__")]
    return _option_names([command_line(), get_args_parser(), *_verbs(command_line()).values(), *programs])


def wrong_in(text: str, folder: Path) -> str | None:
    """What is wrong with a piece of code within the text; None where nothing is, or where it cannot be checked."""
    if re.fullmatch(r"--[a-z][a-z-]*( .*)?", text):
        return None if text.split()[0].split("=")[0] in options() else "no command has this option"
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", text) and ("/" in text or text.endswith((".py", ".md"))):
        return wrong_path(text, folder)
    found = re.fullmatch(r"\+?([a-z_]+(?:@[a-z_.]+)?(?:\.[a-z_0-9]+)*)=(\S*)", text)
    if found and found[1].split("@")[0] in groups() and found[2]:
        values = [value for value in found[2].split(",") if re.fullmatch(r"[a-z]\w*", value)]
        missing = set(values) - set(groups()[found[1].split("@")[0]])
        return f"there is no {missing}" if missing else None
    dotted = re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", text)
    if found or (dotted and text.split(".")[0] in {name.split(".")[0] for name in settings()}):
        key = found[1] if found else text
        known = any(name == key or name.endswith(f".{key}") for name in settings())
        file = not found and text.rpartition(".")[2] in ("py", "yaml", "csv", "png", "mp4", "jsonl", "txt", "html")
        named = not found and text.rpartition(".")[2] in attributes()
        return None if known or file or named else "there is no such setting"
    if dotted and text.split(".")[0] in OURS:
        return None if resolves(text) else "there is no such module or attribute"
    return None


def wrong_path(text: str, folder: Path) -> str | None:
    parts = text.rstrip("/").split("/")
    if parts[0].split(".")[0] in OWN or any(PLACEHOLDER.fullmatch(part.split(".")[0]) for part in parts):
        return None  # a reader's own file, or a placeholder
    if parts[0] in OF_A_RUN or (folder / text).exists() or (ROOT / text).exists():
        return None
    if len(parts) == 1:
        tracked = [path for name in (*FOLDERS, ".ci") for path in (ROOT / name).rglob(text)]
        return None if tracked else "there is no file of this name"
    ours = parts[0] in OURS or text.startswith("runs/reference") or text.endswith((".py", ".md"))
    return "there is no such file or folder" if ours else None


def resolves(dotted: str) -> bool:
    module, _, rest = dotted.partition(".")
    found: Any = import_module(module)
    for name in rest.split("."):
        module = f"{module}.{name}"
        if hasattr(found, name):
            found = getattr(found, name)
        elif inspect.ismodule(found) and find_spec(module):
            found = import_module(module)
        else:
            return False
    return True
