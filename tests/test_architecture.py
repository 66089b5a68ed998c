"""The layering and the habits of the design, read off the syntax trees: no module is imported here."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mbrl", "worldmodel", "policies")
SHARED_VOCABULARY = {
    "torch",
    "tensordict",
    "torchrl",
    "safetensors",
    "torchmetrics",
    "huggingface_hub",
    "annotated_types",
}
# Meta-World's own scripts are the policy, in numpy; the recorder of demonstrations plays nothing else
SCRIPTED = "policies.scripted"
RECORDER = "mbrl.collecting.demonstrations"
SCRIPTED_NEEDS = {"numpy", "metaworld"}
METRICS = ("images", "control", "i3d", "plans", "probe")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of ours."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@cache
def imports(module: str) -> tuple[str, ...]:
    """Dotted names that a module imports, anywhere in it; with `from a import b` b where it is a module."""
    return tuple(_imports(module))


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(tree(modules()[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else str(node.module)


def where(condition: dict[str, list[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(found)}" for name, found in condition.items() if found)


@pytest.mark.parametrize("package", ["worldmodel", "policies"])
def test_siblings_know_only_themselves_and_the_shared_vocabulary(package: str) -> None:
    allowed = {package} | SHARED_VOCABULARY | sys.stdlib_module_names
    extra = {SCRIPTED: SCRIPTED_NEEDS}
    strangers = {
        name: [t for t in imports(name) if t.split(".")[0] not in allowed | extra.get(name, set())]
        for name in modules()
        if name.split(".")[0] == package
    }
    assert not where(strangers)


def test_the_suite_imports_bases_and_pure_functions_and_leaves_classes_to_the_configs() -> None:
    functions = (
        "base",
        "latent_base",
        "reward_base",
        "wrapper",
        "ivideogpt.precision",
        *(f"metrics.{name}" for name in METRICS),
    )
    open_to_all = {
        "policies.base",
        "policies.latent_base",
        "policies.ranges",
        "policies.returns",
        "policies.value_base",
        *(f"worldmodel.{name}" for name in functions),
    }
    concrete = {
        name: [t for t in imports(name) if t.split(".")[0] in ("policies", "worldmodel") and t not in open_to_all]
        for name in modules()
        if name.startswith("mbrl") and not name.startswith("mbrl.bench")
    }
    concrete[RECORDER] = [target for target in concrete[RECORDER] if target != SCRIPTED]
    assert not where(concrete)


def test_only_the_front_door_imports_the_training_loop() -> None:
    importers = {name for name in modules() if "mbrl.training" in imports(name)}
    assert importers <= {"mbrl.start"}


def test_no_imports_go_round_in_a_circle() -> None:
    graph = {name: {target for target in imports(name) if target in modules()} - {name} for name in modules()}
    require_no_cycle(graph)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_imports_go_round_in_a_circle(package: str) -> None:
    """A folder of a package, or a file of its own, is one node."""
    graph: dict[str, set[str]] = {}
    for name in modules():
        if name.startswith(f"{package}.") and name.removeprefix(f"{package}.") != "__main__":
            node = room(name)
            targets = (target for target in imports(name) if target.startswith(f"{package}."))
            graph.setdefault(node, set()).update({room(target) for target in targets} - {node})
    require_no_cycle(graph)


def room(module: str) -> str:
    """`mbrl.replay.latents` and `mbrl.replay` -> `mbrl.replay`."""
    return ".".join(module.split(".")[:2])


def require_no_cycle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_folder_of_the_suite_holds_a_dozen_files_at_most() -> None:
    assert len(list((ROOT / "mbrl").glob("*.py"))) <= 12


def test_files_and_functions_stay_small() -> None:
    too_long = {}
    for name, path in modules().items():
        lines = len(path.read_text().splitlines())
        too_long[name] = [f"{lines} lines"] if lines >= MAX_FILE_LINES else []
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                too_long[name] += [f"{node.name} has {length}"] if length >= MAX_FUNCTION_LINES else []
    assert not where(too_long)


def test_file_names_say_what_is_in_them() -> None:
    empty_names = {"utils", "util", "common", "tools", "helpers", "misc"}
    assert not [name for name in modules() if set(name.split(".")) & empty_names]


# what can run code that lies in a file, or in a text, by the name that it is called by
RUNS_CODE = {
    "eval", "exec", "compile", "torch.save", "load_memmap", "torch.hub.load", "load_state_dict_from_url", "fromfile",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "np.load", "numpy.load", "torch.load",
    "OmegaConf.load", "instantiate", "call", "get_class", "get_method", "get_object",
}  # fmt: skip
UNPICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torchrl.checkpoint"}
# where one of them is called all the same, and why that is safe
SAFE = {
    "mbrl.build": {"instantiate"},  # of an environment, in a worker's process, when its settings have been checked
    "mbrl.targets": {"instantiate", "OmegaConf.load"},  # when they are checked · names alone, of the user's own folder
    "worldmodel.tensor_file": {"torch.load"},  # published weights, tensors alone
}
TENSORS_ALONE = {"torch.load": {"weights_only": "True"}, "np.load": {"allow_pickle": "False"}}


def test_nothing_on_disk_is_run_as_code() -> None:
    found: dict[str, list[str]] = {}
    for name, path in modules().items():
        if name.startswith("mbrl.bench"):  # reads this project's own configurations, and no file of a user's
            continue
        found[name] = [t for t in imports(name) if t in UNPICKLES or t.split(".")[0] in UNPICKLES - {"pickle"}]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                found[name] += _runs_code(node, SAFE.get(name, set()))
            elif isinstance(node, ast.ImportFrom) and node.module == "pickle":
                found[name].append("from pickle import")
    found["worldmodel.tensor_file"].remove("pickle")  # the error that torch.load refuses code with
    assert not where(found)


def _runs_code(call: ast.Call, safe: set[str]) -> list[str]:
    function = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if given.get("allow_pickle") == "True" or function.startswith(("pickle.", "marshal.", "shelve.")):
        return [f"{function} in line {call.lineno}"]
    method = function.rpartition(".")[2]
    if function not in RUNS_CODE and method not in ("load_memmap", "fromfile"):
        return []
    wanted = TENSORS_ALONE.get(function, {})
    if function in safe and all(given.get(key) == value for key, value in wanted.items()):
        return []
    return [f"{function} in line {call.lineno}"]


TEXT = ("read_text", "write_text", "open")
BINARY = ("os.open", "Image.open", "self.open", "self._file.open")  # the last opens a member of an archive


def test_the_encoding_of_every_text_file_is_named() -> None:
    """Otherwise the locale would decide it."""
    found: dict[str, list[str]] = {}
    for name, path in modules().items():
        calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        found[name] = [f"line {call.lineno}" for call in calls if _decodes_by_locale(call)]
    assert not where(found)


def _decodes_by_locale(call: ast.Call) -> bool:
    function, given = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
    if "text" in given or "universal_newlines" in given:
        return True
    method = function.rpartition(".")[2]
    if method not in TEXT or "encoding" in given or function in BINARY:
        return False
    arguments = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    return not (method == "open" and any("b" in str(argument) for argument in arguments))


def test_no_file_names_a_place_on_one_machine() -> None:
    folders = [*PACKAGES, "configs", "runs", ".ci"]
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md")
    ]
    named = [str(path) for path in files if "reference" not in path.parts and "/home/" in path.read_text()]
    assert not named
