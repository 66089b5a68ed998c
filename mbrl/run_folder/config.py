"""A run's configuration on disk, and to whom a run folder belongs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbrl.errors import UserError
from mbrl.run_folder.files import require_regular_files, write_atomically
from mbrl.run_folder.paths import CHECKPOINTS, CONFIG, METRICS, checkpoint_folders

# what may differ between a run and its continuation
IGNORED_ON_RESUME = (
    "run_dir", "threads", "deterministic", "eval.every", "video", "wandb", "collect.backend",
    "agent.size",  # stands for settings that are compared themselves; runs of earlier versions lack it
)  # fmt: skip
LENGTH = "total_env_steps"
# what a run, or the job of a sweep, may have written before its configuration, beside hidden files
EARLIER = {CHECKPOINTS, METRICS, "replay", "tensorboard", "starts.jsonl", "log.txt", "failure.txt"}
IGNORED_ANYWHERE = "cuda_graphs"  # which several parts have
TARGET = "_target_"
# whose classes any configuration may name
ALLOWED_PREFIXES = ("mbrl.", "policies.", "worldmodel.", "torch.optim.")
# settings that every run has, those at the end of the file among them
WRITTEN = ("env", "agent", "total_env_steps", "replay", "collect", "eval.every", "eval.episodes", "eval.seed")
# settings that runs of earlier versions lack, with the values that they ran with
ADDED = {"eval.success": "any", "protocol.name": "default"}
# settings that only runs of earlier versions have, at the end of their names, with the values that are what happens now
REMOVED: dict[str, tuple[Any, ...]] = {
    "model_error.gate": (None,), "imagination.recent_starts": (0.0,), "reward_network.quantile": (None,),
    "reward_network.pretrained": (None,), "codebooks.standardise": (False,), "training.later_encoders": (True,),
    "cloning.proposals": (False,),
    **dict.fromkeys(("world_model.ensemble", "worldmodel.ensemble"), (1,)),
    **dict.fromkeys(("world_model.uncertainty", "worldmodel.uncertainty"), (False, True)),
}  # fmt: skip
MAX_BYTES = 2**20  # bytes of a config.yaml
MAX_DEPTH = 64  # levels of one
MAX_EVENTS = 20_000  # names, values and brackets of one: a run has some hundreds, and more take minutes to build


def read_config(path: Path) -> DictConfig:
    """Read a YAML file of plain settings.

    Raises:
        FileNotFoundError: there is none. ValueError: it is not YAML of that kind: tags (which can build objects),
            anchors (which can make a small file huge) and interpolations (which can read the environment) are refused.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        text = _plain_yaml(path)
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig) or not config:
            raise UserError("it holds no settings by name")
        if _interpolates(OmegaConf.to_container(config)):
            raise UserError("it has interpolations, and a run's configuration is written without them")
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    return _without_removed(config)


def _without_removed(config: DictConfig) -> DictConfig:
    """A configuration without the settings in REMOVED, where they have the value that is left."""
    for key, value in flatten(OmegaConf.to_container(config)).items():
        place, _, name = key.rpartition(".")
        ending = f"{place.rpartition('.')[2]}.{name}"
        part = OmegaConf.select(config, place) if value in REMOVED.get(ending, ()) else None
        # a name with a dot in it leads nowhere, and an argument of a user's own class may have the same name
        if isinstance(part, DictConfig) and str(part.get(TARGET, "worldmodel.")).startswith(ALLOWED_PREFIXES):
            part.pop(name, None)
    return config


def _plain_yaml(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"it is larger than {MAX_BYTES} bytes")
    text = path.read_text(encoding="utf-8-sig")
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
        if count > MAX_EVENTS:
            raise UserError(f"it holds more than {MAX_EVENTS} names and values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"line {event.start_mark.line + 1} is nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise UserError(f"line {event.start_mark.line + 1} has a tag or an anchor")
    return text


def _interpolates(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_interpolates(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return any(_interpolates(part) for part in value)
    return isinstance(value, str) and "${" in value


def load_config(run: Path, named: Collection[str] = ()) -> DictConfig:
    """The configuration of a run folder, whose classes may be built.

    Args:
        named: names in `_target_` that the user allows beside this project's and torch's optimisers.

    Raises:
        FileNotFoundError: the folder is no run folder. ValueError: its configuration cannot be read, or names a class
            that is not allowed; or something in the folder is a link.
    """
    config = _config_of(run)
    require_regular_files(run)
    require_allowed_classes(config, named, run / CONFIG)
    return config


def require_whole(config: DictConfig, run: Path) -> None:
    """UserError where a run's configuration was cut off: a file that ends early can still be YAML."""
    missing = [key for key in WRITTEN if OmegaConf.select(config, key) is None]
    if missing:
        raise UserError(f"{run / CONFIG} lacks {missing[0]}: it is torn, or no run's; restore it from a backup")


def load_settings(run: Path) -> dict[str, Any]:
    """The settings of a run folder, flat, to be read and not built.

    Raises:
        FileNotFoundError: the folder is no run folder. ValueError: its configuration cannot be read.
    """
    return flatten(OmegaConf.to_container(_config_of(run)))


def _config_of(run: Path) -> DictConfig:
    if not (run / CONFIG).is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no {CONFIG}")
    return _with_added(read_config(run / CONFIG))


def _with_added(config: DictConfig) -> DictConfig:
    """A run's configuration with the settings that its version did not have."""
    if isinstance(config.get("eval"), DictConfig):
        for key, value in ADDED.items():
            if OmegaConf.select(config, key) is None:
                OmegaConf.update(config, key, value)
    return config


def claim_run_folder(
    run_dir: Path,
    config: DictConfig,
    *,
    ignored: Collection[str] = IGNORED_ON_RESUME,
    setting: str = "run_dir",
    longer: bool = False,
) -> None:
    """Write the resolved configuration into the folder, or check that the folder is this configuration's.

    Args:
        ignored: settings that may differ. setting: the one that names the folder.
        longer: whether a run that has a checkpoint may go on to more env steps than those of the folder.

    Raises:
        ValueError: the folder belongs to another configuration; names the first differences.
    """
    require_own_folder(run_dir, config, ignored=ignored, setting=setting, longer=longer)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(config, resolve=True))


def has_begun(run_dir: Path) -> bool:
    """Whether a run has written anything there but its configuration."""
    return (run_dir / METRICS).exists() or (run_dir / CHECKPOINTS).exists()


def require_own_folder(
    run_dir: Path,
    config: DictConfig,
    *,
    ignored: Collection[str] = IGNORED_ON_RESUME,
    setting: str = "run_dir",
    longer: bool = False,
) -> None:
    """UserError where the folder belongs to another configuration, or has files and is no run folder.

    Arguments as in `claim_run_folder`. A folder that was claimed for a run which has never begun belongs to nobody.
    """
    path = run_dir / CONFIG
    if not path.exists() and run_dir.is_dir():
        names = {entry.name for entry in run_dir.iterdir() if not entry.name.startswith(".")}
        if foreign := sorted(names - EARLIER):
            some = ", ".join(foreign[:3] + ["..."] * (len(foreign) > 3))
            raise UserError(
                f"{run_dir} holds other files ({some}) and is no run folder: choose a new one with {setting}=..."
            )
    if path.exists() and has_begun(run_dir):
        there = read_config(path)
        if longer and checkpoint_folders(run_dir / CHECKPOINTS) and _is_less(there, config):
            ignored = {*ignored, LENGTH}
        differences = _differences(there, config, ignored)
        if differences:
            more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(
                f"{run_dir} belongs to another config ({'; '.join(differences[:3])}{more}): "
                f"choose another folder with {setting}=... or remove that one"
            )


def require_allowed_classes(config: Any, named: Collection[str], source: Path) -> None:
    """Check that a configuration from a file names no class that is not allowed. Nothing is imported.

    Args:
        config: the configuration. named: names that the user allows. source: its file, for the error message.

    Raises:
        ValueError: names the first class that is not allowed.
    """
    for place, name in foreign_names(config).items():
        if not isinstance(name, str) or name not in named:
            raise UserError(
                f"{source}: {place} names {name}, which is no part of this project and could run any code: if you "
                f"trust it, give --config-dir DIR, a folder with a .yaml that names it ({place.split('.')[-1]}: {name})"
            )


def foreign_names(config: Any) -> dict[str, Any]:
    """Where a configuration names a class or a package that is no part of this project, and the name."""
    classes = {
        place: name
        for place, name in named_classes(config)
        if not (isinstance(name, str) and name.startswith(ALLOWED_PREFIXES))
    }
    return classes | dict(imported_packages(config))


def named_classes(config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Where a class is named, and its name."""
    return ((where, value) for where, key, value in _settings_in(config, place) if key == TARGET)


def imported_packages(config: Any) -> Iterator[tuple[str, str]]:
    """Where an id names a package that is imported, as that of an environment in `my_package:Mine-v0`, and the id."""
    settings = _settings_in(config)
    return ((where, id) for where, key, id in settings if key == "id" and isinstance(id, str) and ":" in id)


def _settings_in(config: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The place, the key and the value of every setting at any depth."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config)
    if isinstance(config, dict):
        for key, value in config.items():
            inner = f"{place}.{key}" if place else str(key)
            yield inner, key, value
            yield from _settings_in(value, inner)
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _settings_in(value, f"{place}[{number}]")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys dotted."""
    if not isinstance(value, dict):
        return {prefix: value}
    nested = (flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
    return {key: item for part in nested for key, item in part.items()}


def _differences(old: Any, new: Any, ignored: Collection[str]) -> list[str]:
    """Differences between configurations. A setting that is gone and was null there is no difference."""
    flat_old = ADDED | flatten(OmegaConf.to_container(old))
    flat_new = ADDED | flatten(OmegaConf.to_container(new, resolve=True))
    keys = sorted(flat_old.keys() | flat_new.keys())
    return [
        f"{key}: {flat_old.get(key, 'absent')} there, {flat_new.get(key, 'absent')} here"
        for key in keys
        if not {key, key.split(".")[0]} & set(ignored)
        and key.split(".")[-1] != IGNORED_ANYWHERE
        and (key not in flat_old or flat_old[key] != flat_new.get(key))
    ]


def _is_less(old: DictConfig, new: DictConfig) -> bool:
    """Whether one configuration has fewer env steps than the other."""
    few, more = old.get(LENGTH), new.get(LENGTH)
    return isinstance(few, int) and isinstance(more, int) and few < more
