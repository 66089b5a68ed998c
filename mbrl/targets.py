"""Build the classes that a configuration names in `_target_`, after a check of which classes it may name.

A configuration that is composed from the command line is trusted: it may name any class of the right kind. One that is
read from a run folder may be from anyone: it may name this project's classes, torch's optimisers, and the names that
the user allows.
"""

from __future__ import annotations

import builtins
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mbrl.compose import nearest
from mbrl.errors import UserError, checks_of_arguments, is_raised
from mbrl.run_folder.config import ALLOWED_PREFIXES, TARGET, named_classes

Function = TypeVar("Function", bound=Callable[..., Any])


def names_in(folder: Path | None) -> set[str]:
    """Names in `_target_` of all YAML files in a user's own folder, at any depth; empty for None.

    Raises:
        FileNotFoundError: the folder does not exist.
        UserError: a file in it cannot be read.
    """
    if folder is None:
        return set()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names: set[str] = set()
    for file in sorted(folder.rglob("*.yaml")):
        try:
            names |= {str(name) for _, name in named_classes(OmegaConf.load(file))}
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    return names


def make(settings: Any, base: type, /, *, place: str = "the part", **objects: Any) -> Any:
    """Build the object that `settings` describe, and the objects in its arguments.

    Args:
        settings: `_target_`, the name of a class or function, and its arguments, which may be such settings too.
        base: class that the result must be an instance of.
        place: key of the settings in the configuration, for error messages.
        objects: further arguments, passed unchanged. Hydra would try to convert them.

    Raises:
        UserError: a class does not exist or is not of the required kind, or its constructor refuses an argument.
    """
    check(settings, base, place)
    try:
        with checks_of_arguments():
            return instantiate(settings, _partial_=True)(**objects)
    except TypeError as error:
        if _inside_target(error):
            raise
        raise UserError(f"{place} cannot be built: {error}") from error
    except InstantiationException as error:  # Raised by a part inside this one.
        cause = error.__cause__
        if isinstance(cause, UserError) or (isinstance(cause, ValueError) and is_raised(cause)):
            raise UserError(str(cause)) from error
        if isinstance(cause, TypeError) and not _inside_target(cause):
            raise UserError(f"{place} cannot be built: {cause}") from error
        raise


def _inside_target(error: TypeError) -> bool:
    """Whether the called code raised the error. Otherwise the arguments of the call are wrong."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module != __name__ and module.split(".")[0] != "hydra"


def check(settings: Any, base: Any, place: str) -> None:
    """Check that every class and function in `settings` is of the required kind, before any of them is called.

    A class must be a subclass of the annotation of the parameter that it is passed to. A function must be annotated to
    return one. A parameter of this project without such an annotation accepts no `_target_`; parameters of a user's own
    classes may be untyped.

    Args:
        settings: as in `make`.
        base: the required class, or Any.
        place: as in `make`.

    Raises:
        UserError: one of them is not, or an argument does not exist.
    """
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=True)
    if not isinstance(settings, Mapping) or TARGET not in settings:
        raise UserError(f"{place} names no class: give {place}.{TARGET}")
    unused = [key for key in settings if key in ("_args_", "_convert_", "_recursive_", "_mode_")]
    if unused:
        raise UserError(f"{place}.{unused[0]} is not used here: give arguments by name")
    target = _find(settings[TARGET], f"{place}.{TARGET}")
    result = target if inspect.isclass(target) else _class_in(_annotations(target).get("return"))
    if base is not Any and not (inspect.isclass(result) and issubclass(result, base)):
        hint = "" if inspect.isclass(result) else f": annotate what it returns, as in `def f(...) -> {base.__name__}`"
        raise UserError(f"{place}.{TARGET}: {settings[TARGET]} makes no {base.__name__}{hint}")
    _check_names(settings, target, place)
    for key, value in settings.items():
        if key != TARGET and next(named_classes(value), None) is not None:
            _check_argument(value, target, key, f"{place}.{key}")


def _check_names(settings: Mapping[str, Any], target: Callable[..., Any], place: str) -> None:
    """Check that the target has an argument for each setting.

    A user's own target may accept any setting (`**settings`). Those of this project declare theirs with `forwards_to`.

    Raises:
        UserError: it has not; the message names the nearest argument.
    """
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if takes_any and not target.__module__.startswith(ALLOWED_PREFIXES):
        return
    names = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    for key in settings:
        if key not in (TARGET, "_partial_", *names):
            raise UserError(f"{place}.{key}: {settings[TARGET]} has no such argument{nearest(key, names)}")


def _check_argument(value: Any, target: Callable[..., Any], key: str, place: str) -> None:
    """Check an argument that contains a `_target_`."""
    required = _required_class(target, key, value)
    if required is None or not isinstance(value, Mapping) or TARGET not in value:
        raise UserError(f"{next(named_classes(value, place))[0]}: no class can be named there")
    check(value, required, place)


def _required_class(target: Callable[..., Any], key: str, value: Any) -> Any:
    """The class that an argument, or the result of its partial, must be of; None if the annotation names no class."""
    annotation = _annotations(target.__init__ if inspect.isclass(target) else target).get(key)
    partial = isinstance(value, Mapping) and bool(value.get("_partial_"))
    required = Callable if _is_callable(annotation) and not partial else _class_in(annotation)
    known = required not in (None, Any, object)
    return required if known else None if target.__module__.startswith(ALLOWED_PREFIXES) else Any


def _find(name: Any, place: str) -> Callable[..., Any]:
    """The class or function of a dotted name.

    Raises:
        UserError: it does not exist, its module cannot be imported, or the module only imports it from another package.
    """
    module, _, attribute = str(name).rpartition(".")
    if not module:
        raise UserError(f"{place}: there is no {name}: give a dotted name such as my_module.MyClass")
    try:
        target = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            hint = "" if module.startswith(ALLOWED_PREFIXES) else ": is its folder on PYTHONPATH?"
            raise UserError(f"{place}: there is no {name} ({error}){hint}") from error
        raise UserError(_broken(name, module, place, error)) from error
    except AttributeError as error:
        if error.obj is not sys.modules.get(module):  # Raised by code of the module.
            raise UserError(_broken(name, module, place, error)) from error
        raise UserError(f"{place}: there is no {name} ({error})") from error
    except Exception as error:  # A user's own module can raise any error.
        raise UserError(_broken(name, module, place, error)) from error
    home = getattr(target, "__module__", None) or ""
    imported = str(name).startswith(ALLOWED_PREFIXES) and home.split(".")[0] != module.split(".")[0]
    if imported or not (inspect.isclass(target) or inspect.isfunction(target)):
        raise UserError(f"{place}: {name} is no class or function of {module.split('.')[0]}")
    return target


def _broken(name: Any, module: str, place: str, error: Exception) -> str:
    """One line for a module whose import fails, with the line in the user's file."""
    reason = str(error)
    if isinstance(error, SyntaxError):
        reason, where = error.msg, f"{error.filename}, line {error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        written = [frame for frame in frames if not frame.filename.startswith("<frozen") and frame.filename != __file__]
        where = f"{written[-1].filename}, line {written[-1].lineno}" if written else module
    return f"{place}: {name} cannot be imported: {type(error).__name__}: {reason} ({where})"


class _Names(dict[str, Any]):
    """Resolves names in annotations to Any, if they are imported for type checkers only."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, key: str) -> Any:
        if key in self._known or hasattr(builtins, key):
            raise KeyError(key)  # Python then looks in the globals and builtins.
        return Any


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function, localns=_Names(getattr(function, "__globals__", {})))


def _class_in(annotation: Any) -> Any:
    """The class X in X, `X | None` or `Callable[..., X]`; None for any other annotation."""
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


def forwards_to(constructor: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorator of a function (or an `__init__`) that passes its `**settings` on to `constructor`.

    In the signature of the function, the keyword-only arguments of `constructor` take the place of `**settings`, except
    for those that the function has itself. So whatever reads the signature, such as `help` or the check of a
    configuration, finds every argument.

    Args:
        constructor: the class or function that takes the settings.
    """
    forwarded = [p for p in inspect.signature(constructor).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def declare(function: Function) -> Function:
        signature = inspect.signature(function)
        own = {name: p for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        parameters = [*own.values(), *(p for p in forwarded if p.name not in own)]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return declare
