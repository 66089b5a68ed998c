"""Checks the settings of a verb with a configuration before anything is built: a slip costs one line and no wait."""

import difflib
import itertools
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mbrl.errors import UserError

CONFIG_MODULE = "configs"
ROOT_CONFIG = "train"
LAUNCHERS = {"joblib": "local", "submitit_slurm": "slurm", "ray": "ray"}  # Hydra's plugin -> ours, and its extra


def groups() -> dict[str, list[str]]:
    """The config groups and the names in each, read from the folders of `configs/`."""
    folders = (folder for folder in files(CONFIG_MODULE).iterdir() if folder.is_dir())
    found = {
        folder.name: sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".yaml"))
        for folder in folders
    }
    return {name: members for name, members in sorted(found.items()) if members}


def check_overrides(arguments: Sequence[str], root: str = ROOT_CONFIG) -> None:
    """Composes the configuration of `root`, in configs/, that `arguments` ask for.

    Raises ValueError with one line that names the culprit and the nearest names that exist.
    A sweep (`seed=1,2,3`) is checked value by value, each with the first values of the others.
    """
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        overrides = _parse(arguments)
        _check_group_choices(overrides)
        values = [_plain_overrides(override) for override in overrides]
        first = [choices[0] for choices in values if choices]
        _compose(root, first, overrides)
        for position, choices in enumerate(choices for choices in values if choices):
            for choice in choices[1:]:
                _compose(root, [*first[:position], choice, *first[position + 1 :]], overrides)


def composed_jobs(arguments: Sequence[str], root: str = ROOT_CONFIG) -> list[tuple[list[str], DictConfig]]:
    """Each job of a sweep: the overrides that make it this one, and its configuration; in the order of Hydra's sweeper.

    Sweeps whose values only the sweeper knows, such as intervals, count with their default.
    """
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        choices = [
            [(line, override.is_discrete_sweep()) for line in _plain_overrides(override)]
            for override in _parse(arguments)
        ]
        combined = itertools.product(*(lines for lines in choices if lines))
        return [
            ([line for line, swept in job if swept], compose(root, overrides=[line for line, _ in job]))
            for job in combined
        ]


def _parse(arguments: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # it knows what globs match
    parsed = []
    for argument in arguments:
        try:
            parsed += parser.parse_overrides([argument])
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            hint = "a setting is written key=value, and quoted where it has spaces or brackets: 'key=\"a b\"'"
            raise UserError(f"cannot read the setting {argument!r} ({reason}); {hint}") from error
    return parsed


def _plain_overrides(override: Override) -> list[str]:
    """The override once for each value of its sweep; nothing where only the sweeper knows the values."""
    line = override.input_line or ""
    if not override.is_sweep_override():
        return [line]
    if not override.is_discrete_sweep():
        return []
    return [f"{line.split('=', 1)[0]}={value}" for value in override.sweep_string_iterator()]


def _check_group_choices(overrides: Sequence[Override]) -> None:
    known = groups()
    for override in overrides:
        group = override.key_or_group
        if group not in known or override.is_delete():
            continue
        for line in _plain_overrides(override):
            name = line.split("=", 1)[1]
            if name not in (*known[group], "null"):
                raise UserError(f"no {group} named {name!r}{nearest(name, known[group])}")


def _compose(root: str, lines: list[str], overrides: Sequence[Override]) -> None:
    try:
        compose(root, overrides=lines)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(root, error, overrides)) from error


def _explain(root: str, error: Exception, overrides: Sequence[Override]) -> str:
    missing = [plugin for plugin in LAUNCHERS if f"'hydra/launcher/{plugin}'" in str(error)]
    if missing:
        name = LAUNCHERS[missing[0]]
        return f"launch={name} needs a package that is not here: pip install -e '.[{name}]'"
    known = groups()
    chosen = [override for override in overrides if override.key_or_group in known]
    keys = _keys(compose(root, overrides=[line for o in chosen for line in _plain_overrides(o)[:1]]))
    names = [*keys, *known]
    for override in overrides:
        key = override.key_or_group
        added = override.is_add() or override.is_force_add()
        if key not in names and not added and not key.startswith("hydra"):
            return f"no setting named {key!r}{nearest(key, names)}"
    return " ".join(str(error).split())


def _keys(config: DictConfig) -> list[str]:
    """Every key of the configuration, dotted, groups of keys included."""
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
    """The end of an error line: the known names nearest to `name`, or all of them where they are few."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    last_parts = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    wanted = list(dict.fromkeys([*last_parts[:3], *close]))
    if wanted:
        return f"; nearest: {', '.join(wanted)}"
    few = len(known) <= 20
    return f"; there are: {', '.join(known)}" if few else "; `--cfg job` shows what there is"
