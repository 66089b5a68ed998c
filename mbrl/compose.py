"""Compose configurations, and check settings before anything is built: a wrong name is one line, at once."""

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mbrl.errors import UserError
from mbrl.run_folder.protocol import require_protocol
from mbrl.settings import resolvers

CONFIGS = Path(__file__).parents[1] / "configs"  # by its place: anybody may have a package named configs
ROOT_CONFIG = "train"
LAUNCHERS = {"joblib": "local", "submitit_slurm": "slurm", "ray": "ray"}  # Hydra's plugin -> configs/launch, extra
Known = Mapping[str, Sequence[str]]  # group -> names of its files
PARTS = ("cloning", "planner", "policy", "reward_network", "worldmodel")  # parts of the agent, agent.GROUP or ...
PART_KEYS = {"worldmodel": "agent.world_model", "reward_network": "agent.world_model.reward_network"}

resolvers.register()


def groups(config_dir: Path | None = None, arguments: Sequence[str] = ()) -> dict[str, list[str]]:
    """The names of the files in each config group.

    Args:
        config_dir: a user's own folder with the same groups as `configs/`, whose files are added; None for none.
        arguments: Hydra's overrides, of which `hydra.searchpath=[...]` adds further folders.
    """
    folders = [folder for folder in CONFIGS.iterdir() if folder.is_dir()]
    folders += [folder for place in _own(config_dir, arguments) for folder in place.iterdir() if folder.is_dir()]
    found: dict[str, set[str]] = {}
    for folder in folders:
        names = {Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".yaml")}
        found.setdefault(folder.name, set()).update(names)
    return {name: sorted(members) for name, members in sorted(found.items()) if members}


def _own(config_dir: Path | None, arguments: Sequence[str]) -> list[Path]:
    """A user's own folder, and those that `hydra.searchpath` names and that are there; Hydra warns of the others."""
    given = [line.split("=", 1)[1] for line in arguments if line.lstrip("+").startswith("hydra.searchpath=")]
    names = [name.strip(" '\"") for line in given for name in line.strip(" []").split(",")]
    found = [path for name in names if name for path in _places(name) if path.is_dir()]
    return found if config_dir is None else [config_dir, *found]


def _places(name: str) -> list[Path]:
    """The folders that an entry of `hydra.searchpath` names: a path, file://PATH or pkg://PACKAGE."""
    if not name.startswith("pkg://"):
        return [Path(name.removeprefix("file://"))]
    try:
        package = find_spec(name.removeprefix("pkg://").replace("/", "."))
    except (ImportError, ValueError):
        return []
    return [] if package is None else [Path(place) for place in package.submodule_search_locations or ()]


def group_key(group: str, root: str = ROOT_CONFIG) -> str:
    """The key that chooses from a group on the command line: `agent`, or `policy@agent.policy`."""
    part = root == ROOT_CONFIG and group in PARTS
    return f"{group}@{PART_KEYS.get(group, f'agent.{group}')}" if part else group


@contextmanager
def configurations(config_dir: Path | None = None) -> Iterator[None]:
    """Set Hydra up for `compose` with `configs/` and, before it, a user's own folder, as `--config-dir` does.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise FileNotFoundError(f"--config-dir: there is no folder {config_dir}")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        if config_dir is not None:
            places = create_config_search_path(str(CONFIGS))
            own = f"file://{config_dir.absolute()}"
            places.prepend(provider="command-line", path=own, anchor=SearchPathQuery(provider="schema"))
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2(task_name="mbrl", config_search_path=places)
        yield


def check_overrides(arguments: Sequence[str], root: str = ROOT_CONFIG, config_dir: Path | None = None) -> None:
    """Check overrides by composing the configuration.

    Each value of a sweep (`seed=1,2,3`) is checked with the first values of the other sweeps.

    Args:
        arguments: Hydra's overrides.
        root: the name of the root configuration, `train` or `pretrain`.
        config_dir: a user's own folder of configurations.

    Raises:
        UserError: a setting or choice does not exist; the message names it and the nearest that exist.
    """
    with configurations(config_dir):
        overrides = _parse(arguments)
        swept = [choices for override in overrides if (choices := _swept_values(override))]
        jobs = [first := [choices[0] for choices in swept]]
        for position, choices in enumerate(swept):
            jobs += [[*first[:position], choice, *first[position + 1 :]] for choice in choices[1:]]
        for job in jobs:
            _checked(job, overrides, arguments, root, config_dir)


def composed(arguments: Sequence[str], root: str = ROOT_CONFIG, config_dir: Path | None = None) -> DictConfig:
    """Check overrides and compose the configuration of one run; arguments and errors as in `check_overrides`.

    Raises:
        UserError: besides, a setting has several values.
    """
    with configurations(config_dir):
        overrides = _parse(arguments)
        for override in overrides:
            if override.is_sweep_override():
                raise UserError(f"{override.input_line} has several values: one run takes one, a sweep is --multirun")
        return _checked(list(arguments), overrides, arguments, root, config_dir)


def _checked(
    job: list[str], overrides: Sequence[Override], arguments: Sequence[str], root: str, config_dir: Path | None
) -> DictConfig:
    """The configuration of one job of these overrides, which the arguments were parsed into."""
    known = groups(config_dir, arguments)
    _check_group_choices(overrides, known)
    config = _compose(root, job, overrides, known)
    require_protocol(config, [*_own(config_dir, arguments), CONFIGS], partial(compose, root), job)
    return config


def composed_jobs(
    arguments: Sequence[str], root: str = ROOT_CONFIG, config_dir: Path | None = None
) -> list[tuple[list[str], DictConfig]]:
    """The jobs of a sweep, in the order of Hydra's sweeper; arguments as in `check_overrides`.

    A sweep whose values only the sweeper knows, such as an interval, keeps its default.

    Returns:
        For each job, the overrides that differ between jobs, and its configuration.

    Raises:
        UserError: a job names a protocol and has other settings.
    """
    with configurations(config_dir):
        choices = [
            [(line, override.is_discrete_sweep()) for line in _swept_values(override)] for override in _parse(arguments)
        ]
        folders, jobs = [*_own(config_dir, arguments), CONFIGS], []
        for job in itertools.product(*(lines for lines in choices if lines)):
            overrides = [line for line, _ in job]
            config = compose(root, overrides=overrides)
            require_protocol(config, folders, partial(compose, root), overrides)
            jobs.append(([line for line, swept in job if swept], config))
        return jobs


def settings_of(root: str, arguments: Sequence[str] = (), config_dir: Path | None = None) -> list[str]:
    """Dotted keys of all settings, with the groups that `arguments` choose."""
    with configurations(config_dir):
        return _keys(compose(root, overrides=list(arguments)))


def _parse(arguments: Sequence[str]) -> list[Override]:
    # The parser needs a config loader to resolve globs.
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = []
    for argument in arguments:
        try:
            parsed += parser.parse_overrides([argument])
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            hint = "a setting is written key=value, and quoted where it has spaces or brackets: 'key=\"a b\"'"
            raise UserError(f"cannot read the setting {argument!r} ({reason}); {hint}") from error
    return parsed


def _swept_values(override: Override) -> list[str]:
    """One override for each value of a sweep; none if only the sweeper knows the values."""
    line = override.input_line or ""
    if not override.is_sweep_override():
        return [line]
    if not override.is_discrete_sweep():
        return []
    return [f"{line.split('=', 1)[0]}={value}" for value in override.sweep_string_iterator()]


def _check_group_choices(overrides: Sequence[Override], known: Known) -> None:
    for override in overrides:
        group = override.key_or_group
        if group not in known or override.is_delete():
            continue
        for line in _swept_values(override):
            name = line.split("=", 1)[1]
            if name == "null":  # Hydra takes no null here.
                raise UserError(f"{line} is not allowed: choose one of {', '.join(known[group])}")
            if name not in known[group]:
                raise UserError(f"no {group} named {name!r}{nearest(name, known[group])}")


def _compose(root: str, lines: list[str], overrides: Sequence[Override], known: Known) -> DictConfig:
    try:
        return compose(root, overrides=lines)
    except YAMLError as error:
        raise UserError(f"a configuration is not YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: of a number as a group's choice
        raise UserError(_explain(root, error, overrides, known)) from error


def _explain(root: str, error: Exception, overrides: Sequence[Override], known: Known) -> str:
    missing = [plugin for plugin in LAUNCHERS if f"'hydra/launcher/{plugin}'" in str(error)]
    if missing:
        name = LAUNCHERS[missing[0]]
        return f"launch={name} needs a package that is not installed: in the clone, pip install -e '.[{name}]'"
    for override in overrides:
        group = override.key_or_group
        if root == ROOT_CONFIG and group in PARTS and override.package is None:
            return f"{group} is a part of the agent: give {group_key(group)}={override.value()}"
    chosen = [override for override in overrides if override.key_or_group in known]
    try:
        keys = _keys(compose(root, overrides=[line for o in chosen for line in _swept_values(o)[:1]]))
    except (HydraException, OmegaConfBaseException):  # A chosen file cannot be composed.
        return " ".join(str(error).split())
    names = [*keys, *known]
    for override in overrides:
        key = override.key_or_group
        added = override.is_add() or override.is_force_add()
        if key not in names and not added and not key.startswith("hydra"):
            return f"no setting named {key!r}{nearest(key, names)}"
    return " ".join(str(error).split())


def _keys(config: DictConfig) -> list[str]:
    """Dotted keys of all nodes of the configuration, groups included."""
    found: list[str] = []

    def visit(node: DictConfig, prefix: str) -> None:
        for name in node:
            path = f"{prefix}{name!s}"
            found.append(path)
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
                visit(child, f"{path}.")

    visit(config, "")
    return found


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error line: the known names nearest to `name`; without any, all of up to 20 known names."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    last_parts = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    candidates = list(dict.fromkeys([*last_parts[:3], *close]))
    if candidates:
        return f"; nearest: {', '.join(candidates)}"
    is_short = len(known) <= 20
    return f"; there are: {', '.join(known)}" if is_short else "; `--cfg job` shows all settings"
