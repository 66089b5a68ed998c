"""Hold every setting of a configuration against its type, and make whole numbers such as 5e3 integers in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbrl.errors import UserError
from mbrl.run_folder.config import flatten
from mbrl.settings.values import SettingError
from mbrl.targets import typed

REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # an interpolation that is the value of another setting
EXAMPLES = {"env.id": "Pendulum-v1"}  # of values of settings without a default
Check = Callable[[Any, str], Any]  # settings and their key -> the settings, checked


def require_types(config: DictConfig, types: Mapping[str, Any], *, composed: bool = True) -> None:
    """Check the settings of a configuration, in the order of `types`.

    Args:
        config: whole numbers that are floats, such as 5e3, become integers in it.
        types: key -> annotation, or a function that checks the settings under this key. Other keys are not checked.
        composed: whether every key must be there. That of an older run folder may lack some.

    Raises:
        UserError: a value is not what its type allows, or one without a default is not given; says how it was typed
            and what is allowed.
    """
    _require_given(config)
    for key, wanted in types.items():
        if key not in config and not composed:
            continue
        try:
            settings = _plain(config, key)
            checked = wanted(settings, key) if _is_check(wanted) else typed(settings, wanted, key)
        except SettingError as error:
            raise _of_source(config, error) from error
        _replace_integers(config, key, settings, checked)


def _require_given(config: DictConfig) -> None:
    """Refuse a setting that is `???` in its file and was not given: others may refer to it."""
    for key, value in flatten(OmegaConf.to_container(config)).items():
        if value == "???":
            raise UserError(f"{key} has no default: give it, as in {key}={EXAMPLES.get(key, 'VALUE')}")


def _is_check(wanted: Any) -> bool:
    return isinstance(wanted, FunctionType)


def _plain(config: DictConfig, key: str) -> Any:
    """The value under a key, resolved; None where there is no such key."""
    try:
        value = config.get(key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{key} cannot be resolved: {' '.join(str(error).split())}") from error


def _of_source(config: DictConfig, error: SettingError) -> SettingError:
    """The same error about the setting that was typed, where the wrong one only refers to it."""
    place = error.place
    for _ in range(len(place)):
        try:
            parent, _, name = place.rpartition(".")
            node = (OmegaConf.select(config, parent) if parent else config)._get_node(name)
            found = REFERENCE.fullmatch(str(node._value())) if node is not None and node._is_interpolation() else None
        except (OmegaConfBaseException, AttributeError):
            break
        if found is None or OmegaConf.select(config, found[1]) != error.value:
            break
        place = found[1]
    return error if place == error.place else SettingError(place, error.value, error.allowed)


def _replace_integers(config: DictConfig, place: str, before: Any, after: Any) -> None:
    """Write the integers of `after` into `config` where `before` has floats."""
    if isinstance(before, Mapping):
        for key, value in before.items():
            _replace_integers(config, f"{place}.{key}", value, after[key])
    elif before != after or _types(before) != _types(after):
        OmegaConf.update(config, place, after)


def _types(value: Any) -> Any:
    return [*map(type, value)] if isinstance(value, list) else type(value)
