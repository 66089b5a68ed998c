"""Which classes a configuration may name in `_target_`.

A configuration that was composed from the command line is the user's own: it may name any class that belongs at its
place. One that was read from a run folder may come from a stranger: it may name this project's classes, torch's
optimisers, and what the user allows by name.
"""

from __future__ import annotations

import builtins
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mbrl.errors import UserError, checks_of_arguments
from mbrl.run_folder.config import OURS, TARGET, targets


def names_in(folder: Path | None) -> set[str]:
    """Every name in `_target_` of the YAML files in a folder of the user's own, at any depth; none without a folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if folder is None:
        return set()
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
    try:
        with checks_of_arguments():
            return instantiate(settings, _partial_=True)(**objects)
    except TypeError as error:  # an argument that is missing, unknown or of another type
        raise UserError(f"{place} cannot be built: {error}") from error
    except InstantiationException as error:  # of a part inside this one
        if isinstance(error.__cause__, ValueError):
            raise UserError(str(error.__cause__)) from error
        raise


def check(settings: Any, base: Any, place: str) -> None:
    """Check that everything named in `settings` belongs at its place, before any of it is called.

    A class must be a subclass of what the parameter that it is given to is annotated with; a function must be annotated
    to return one. Where a parameter of this project's is not annotated with a class, nothing can be named. Parameters
    of a user's own classes may be untyped.

    Args:
        settings, place: as in `make`. base: the class that is wanted, or Any.

    Raises:
        ValueError: names the first that does not.
    """
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=True)
    if not isinstance(settings, Mapping) or TARGET not in settings:
        raise UserError(f"{place} names no class: give {place}.{TARGET}")
    unused = [key for key in settings if key in ("_args_", "_convert_", "_recursive_", "_mode_")]
    if unused:
        raise UserError(f"{place}.{unused[0]} is not used here: give arguments by name")
    target = _find(settings[TARGET], f"{place}.{TARGET}")
    made = target if inspect.isclass(target) else _class_in(_annotations(target).get("return"))
    if base is not Any and not (inspect.isclass(made) and issubclass(made, base)):
        hint = "" if inspect.isclass(made) else f": annotate what it returns, as in `def f(...) -> {base.__name__}`"
        raise UserError(f"{place}.{TARGET}: {settings[TARGET]} makes no {base.__name__}{hint}")
    for key, value in settings.items():
        if key != TARGET and next(targets(value), None) is not None:
            _check_argument(value, target, key, f"{place}.{key}")


def _check_argument(value: Any, target: Callable[..., Any], key: str, place: str) -> None:
    """Check an argument in which a class is named."""
    wanted = _wanted(target, key, value)
    if wanted is None or not isinstance(value, Mapping) or TARGET not in value:
        raise UserError(f"{next(targets(value, place))[0]}: no class can be named there")
    check(value, wanted, place)


def _wanted(target: Callable[..., Any], key: str, value: Any) -> Any:
    """The class that an argument must be of, or must make where it is given as a partial; None where there is none."""
    annotation = _annotations(target.__init__ if inspect.isclass(target) else target).get(key)
    partial = isinstance(value, Mapping) and bool(value.get("_partial_"))
    wanted = Callable if _is_callable(annotation) and not partial else _class_in(annotation)
    known = wanted not in (None, Any, object)
    return wanted if known else None if target.__module__.startswith(OURS) else Any


def _find(name: Any, place: str) -> Callable[..., Any]:
    """The class or function of a dotted name.

    Raises:
        ValueError: there is none; or it was only imported there from somewhere else.
    """
    module, _, attribute = str(name).rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{place}: there is no {name} ({error})") from error
    home = getattr(found, "__module__", None) or ""
    imported = str(name).startswith(OURS) and home.split(".")[0] != module.split(".")[0]
    if imported or not (inspect.isclass(found) or inspect.isfunction(found)):
        raise UserError(f"{place}: {name} is no class or function of {module.split('.')[0]}")
    return found


class _Names(dict[str, Any]):
    """Stands for names in annotations that are imported for type checkers alone: each of them is Any."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, key: str) -> Any:
        if key in self._known or hasattr(builtins, key):
            raise KeyError(key)  # python looks there next
        return Any


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function, localns=_Names(getattr(function, "__globals__", {})))


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
