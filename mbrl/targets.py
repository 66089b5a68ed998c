"""Build the classes that a configuration names in `_target_`, after a check of which classes it may name.

A configuration that is composed from the command line is trusted: it may name any class of the right kind. One that is
read from a run folder may be from anyone: it may name this project's classes, torch's optimisers, and the names that
the user allows.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mbrl.compose import nearest
from mbrl.errors import UserError, checks_of_arguments, is_raised
from mbrl.run_folder.config import ALLOWED_PREFIXES, TARGET, imported_packages, named_classes
from mbrl.settings.annotations import class_in, is_callable, types_of
from mbrl.settings.values import NOTHING, SettingError, describe, entries, plain_part, require_value, required
from policies.ranges import Share, WeightDecay

PARTIAL = "_partial_"
# torch annotates no ranges, and accepts a learning rate of 1e30; one of 0 trains nothing
OPTIMIZERS, OPTIMIZER_RANGES = "torch.optim.", {"lr": Share, "weight_decay": WeightDecay}
TOUR = "mbrl.tour"  # a script, and no module of classes: to import it is to run it


def names_in(folder: Path | None) -> set[str]:
    """Names in `_target_`, and in ids of environments, of all YAML files in a user's own folder; empty for None.

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
            settings = OmegaConf.load(file)
            names |= {str(name) for _, name in (*named_classes(settings), *imported_packages(settings))}
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
    settings = check(settings, base, place)
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


def takes(settings: Any, argument: str) -> bool:
    """Whether the class or function that `settings` describe has this argument."""
    return argument in inspect.signature(_find(settings[TARGET], TARGET)).parameters


def _inside_target(error: TypeError) -> bool:
    """Whether the called code raised the error. Otherwise the arguments of the call are wrong."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module != __name__ and module.split(".")[0] != "hydra"


def check(settings: Any, base: Any, place: str) -> dict[str, Any]:
    """Check every class, function and value in `settings`, before any of the classes and functions is called.

    A class must be a subclass of the annotation of the parameter that it is passed to. A function must be annotated to
    return one. A parameter of this project without such an annotation accepts no `_target_`; parameters of a user's own
    classes may be untyped. A value must be what the annotation of its parameter allows, within its range.

    Args:
        settings: as in `make`.
        base: the required class, or Any.
        place: as in `make`.

    Returns:
        The settings, resolved, with integers where whole numbers such as 5e3 are required.

    Raises:
        UserError: a class or a value is not allowed, or an argument does not exist.
    """
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=True)
    if not isinstance(settings, Mapping):
        raise SettingError(place, settings, f"settings whose {TARGET} makes a {getattr(base, '__name__', 'part')}")
    if TARGET not in settings:
        raise UserError(f"{place} names no class: give {place}.{TARGET}")
    unused = [key for key in settings if key in ("_args_", "_convert_", "_recursive_", "_mode_")]
    if unused:
        raise UserError(f"{place}.{unused[0]} is not used here: give arguments by name")
    target = _find(settings[TARGET], f"{place}.{TARGET}")
    result = target if inspect.isclass(target) else class_in(types_of(target).get("return"))
    if base is not Any and not (inspect.isclass(result) and issubclass(result, base)):
        hint = "" if inspect.isclass(result) else f": annotate what it returns, as in `def f(...) -> {base.__name__}`"
        raise UserError(f"{place}.{TARGET}: {settings[TARGET]} makes no {base.__name__}{hint}")
    _check_names(settings, target, place)
    return {
        str(key): value if key == TARGET else _checked_argument(value, target, str(key), f"{place}.{key}")
        for key, value in settings.items()
    }


def typed(value: Any, annotation: Any, place: str) -> Any:
    """A value, or settings by name with everything in them, checked and returned as in `check`.

    Args:
        value: plain values, resolved: null, bools, numbers, text, lists and dictionaries of these.
        annotation: type that is required.
        place: key of the value in the configuration.
    """
    if not isinstance(value, Mapping):
        return require_value(value, annotation, place)
    if TARGET in value:
        return check(value, class_in(annotation) or Any, place)
    annotation_of = entries(annotation)
    if annotation_of is None:
        raise SettingError(place, value, describe(annotation))
    found = {}
    for name, item in value.items():
        inner = f"{place}.{name}" if place else str(name)
        try:
            wanted = annotation_of(str(name))
        except KeyError:
            raise UserError(f"{inner}: there is no such setting") from None
        try:
            found[str(name)] = typed(item, wanted, inner)
        except SettingError as error:
            if str(name).isidentifier():
                raise
            raise SettingError(place, value, describe(annotation)) from error  # A path can be no part of a key.
    for name, wanted in required(annotation).items():
        if name not in found:
            raise UserError(f"{place}.{name} is missing: it must be {describe(wanted)}")
    return found


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
        if key not in (TARGET, PARTIAL, *names):
            raise UserError(f"{place}.{key}: {settings[TARGET]} has no such argument{nearest(key, names)}")


def _checked_argument(value: Any, target: Callable[..., Any], key: str, place: str) -> Any:
    """An argument of a class or function, checked and returned as in `check`."""
    annotation = bool if key == PARTIAL else types_of(target).get(key, Any)
    if key in OPTIMIZER_RANGES and str(target.__module__).startswith(OPTIMIZERS):
        annotation = OPTIMIZER_RANGES[key]
    if next(named_classes(value), None) is not None:
        required = _required_class(target, annotation, value)
        if required is None or not isinstance(value, Mapping) or TARGET not in value:
            raise UserError(f"{next(named_classes(value, place))[0]}: no class can be named there")
        return check(value, required, place)
    is_object = plain_part(annotation) is NOTHING and entries(annotation) is None
    if is_object and not target.__module__.startswith(ALLOWED_PREFIXES):  # A user's own class may convert it.
        return value
    return typed(value, annotation, place)


def _required_class(target: Callable[..., Any], annotation: Any, value: Any) -> Any:
    """The class that an argument, or the result of its partial, must be of; None if the annotation names no class."""
    partial = isinstance(value, Mapping) and bool(value.get(PARTIAL))
    required = Callable if is_callable(annotation) and not partial else class_in(annotation)
    known = required not in (None, Any, object)
    return required if known else None if target.__module__.startswith(ALLOWED_PREFIXES) else Any


def _find(name: Any, place: str) -> Callable[..., Any]:
    """The class or function of a dotted name.

    Raises:
        UserError: it does not exist, its module cannot be imported, or the module only imports it from another package.
    """
    module, _, attribute = str(name).rpartition(".")
    if not module or f"{module}.".startswith(f"{TOUR}."):
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
