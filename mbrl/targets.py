"""Which classes a configuration may name in `_target_`.

A configuration that was composed from the command line is the user's own: it may name any class that belongs at its
place. One that was read from a run folder may come from a stranger: it may name this project's classes, torch's
optimisers, and what the user allows by name.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from mbrl.run_folder.config import TARGET, targets

HYDRAS = {TARGET, "_partial_"}  # of Hydra's own keys; `_args_`, `_convert_` and `_recursive_` are not used here


def names_in(folder: Path) -> set[str]:
    """Every name in `_target_` of the YAML files in a folder of the user's own, at any depth.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    configs = (OmegaConf.load(file) for file in sorted(folder.rglob("*.yaml")))
    return {str(name) for config in configs for _, name in targets(config)}


def make(settings: Any, base: type, /, *, place: str = "the part", **objects: Any) -> Any:
    """Build what `settings` name, with the objects in them.

    Args:
        settings: `_target_`, the class or function, and its arguments; those may be such settings themselves.
        base: what must come of it. place: of the settings in the configuration, for error messages.
        objects: further arguments, handed over as they are. Hydra alone would try to convert them.

    Raises:
        ValueError: a class does not belong at its place, or is not there.
    """
    check(settings, base, place)
    return instantiate(settings, _partial_=True)(**objects)


def check(settings: Any, base: Any, place: str) -> None:
    """Check that everything named in `settings` belongs at its place, before any of it is called.

    A class must be a subclass of what the parameter that it is given to is annotated with; a function must return one.

    Args:
        settings, place: as in `make`. base: the class that is wanted; Any where it is not known.

    Raises:
        ValueError: names the first that does not.
    """
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=True)
    if not isinstance(settings, Mapping) or TARGET not in settings:
        raise ValueError(f"{place} names no class: give {place}.{TARGET}")
    target = _find(settings[TARGET], f"{place}.{TARGET}")
    made = _made_by(target)
    if base is not Any and not (inspect.isclass(made) and issubclass(made, base)):
        raise ValueError(f"{place}.{TARGET}: {settings[TARGET]} makes no {base.__name__}")
    for key, value in settings.items():
        if key not in HYDRAS:
            _check_argument(value, target, key, f"{place}.{key}")


def _check_argument(value: Any, target: Callable[..., Any], key: str, place: str) -> None:
    if not any(True for _ in targets(value)):
        return
    if not isinstance(value, Mapping) or TARGET not in value:
        raise ValueError(f"{next(targets(value, place))[0]}: no class can be named there")
    check(value, _wanted(target, key, bool(value.get("_partial_"))), place)


def _find(name: Any, place: str) -> Callable[..., Any]:
    """The class or function of a dotted name.

    Raises:
        ValueError: there is none; or it was only imported there from somewhere else.
    """
    module, _, attribute = str(name).rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{place}: there is no {name} ({error})") from error
    home = getattr(found, "__module__", None) or ""
    if not (inspect.isclass(found) or inspect.isfunction(found)) or home.split(".")[0] != module.split(".")[0]:
        raise ValueError(f"{place}: {name} is no class or function of {module.split('.')[0]}")
    return found


def _made_by(target: Callable[..., Any]) -> Any:
    """The class of what the target makes; None where a function does not say."""
    return target if inspect.isclass(target) else _class_in(_annotation(target, "return"))


def _wanted(target: Callable[..., Any], key: str, partial: bool) -> Any:
    """The class that an argument must be of, or must make where it is given as a partial; Any where it does not say."""
    annotation = _annotation(target.__init__ if inspect.isclass(target) else target, key)
    if not partial and _is_callable(annotation):
        return Callable
    wanted = _class_in(annotation)
    return Any if wanted is None else wanted


def _annotation(function: Callable[..., Any], name: str) -> Any:
    annotation = getattr(function, "__annotations__", {}).get(name)
    if isinstance(annotation, str):
        try:
            return eval(annotation, getattr(function, "__globals__", {}))  # as typing.get_type_hints does, but of one
        except NameError:  # imported for type checkers alone
            return None
    return annotation


def _class_in(annotation: Any) -> Any:
    """X of X, `X | None` and `Callable[..., X]`; None of anything else."""
    annotation = _without_none(annotation)
    if _is_callable(annotation):
        return _class_in(typing.get_args(annotation)[-1])
    return annotation if inspect.isclass(annotation) else None


def _is_callable(annotation: Any) -> bool:
    return typing.get_origin(_without_none(annotation)) is Callable


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return annotation
    classes = [part for part in typing.get_args(annotation) if part is not type(None)]
    return classes[0] if len(classes) == 1 else None
