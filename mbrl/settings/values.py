"""Whether a value is what an annotation allows, and what an annotation allows in words.

pydantic decides, in its strict mode: no text for a number, no number for text, no bool for an int. 5.0 and 5e3 are
whole numbers, because Hydra reads 5e3 as a float. NaN and infinity are no numbers.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from mbrl.errors import UserError
from mbrl.settings.annotations import members, types_of
from mbrl.settings.overrides import override_of

NOTHING = typing.Never  # of an annotation that allows no plain value
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "text"}
MOST_DIGITS = 1e15  # a larger number is shown as 1e+16
LONGEST = 120  # letters of a value in an error message
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class SettingError(UserError):
    """A setting has a value that is not allowed.

    Attributes:
        place: key of the setting in the configuration.
        value: what it is.
        allowed: what it may be, in words.
    """

    def __init__(self, place: str, value: Any, allowed: str) -> None:
        typed = override_of(place, _whole(value) if not isinstance(value, float) or abs(value) < MOST_DIGITS else value)
        if len(typed) > LONGEST:
            typed = f"{typed[:LONGEST]}…"
        super().__init__(f"{typed} is not allowed: it must be {allowed}")
        self.place, self.value, self.allowed = place, value, allowed


class Arguments:
    """Metadata of an annotation of settings: they are arguments of a constructor that is not named in `_target_`.

    Args:
        of: the constructor.
        given: arguments that are no settings.
    """

    def __init__(self, of: Callable[..., Any], given: Collection[str] = ()) -> None:
        self.of, self.given = of, given


def require_value(value: Any, annotation: Any, place: str) -> Any:
    """The value, which is no mapping, with whole numbers such as 5.0 as integers where the annotation allows them.

    Args:
        value: null, a bool, a number, text, or a list of these.
        annotation: type that is required; parts of it that are classes allow no plain value.
        place: key of the setting, for the error message.

    Raises:
        SettingError: the annotation does not allow the value.
    """
    adapter = _adapter(annotation)
    if adapter is None:
        raise SettingError(place, value, describe(annotation))
    try:
        # In JSON, a list is also a tuple.
        validated = adapter.validate_json(json.dumps(_whole(value), default=str))
    except ValidationError as error:
        raise SettingError(place, value, describe(annotation)) from error
    return _integers(value, validated)


def _whole(value: Any) -> Any:
    """The value with integers for all whole numbers; pydantic makes them floats where a float is required."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def _integers(value: Any, validated: Any) -> Any:
    """The value, with the integers that a validation made of floats."""
    if isinstance(value, list | tuple) and isinstance(validated, list | tuple):
        return [_integers(*pair) for pair in zip(value, validated, strict=True)]
    return validated if isinstance(value, float) and type(validated) is int else value


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """Validator of plain values; None for an annotation that allows none."""
    plain = plain_part(annotation)
    return None if plain is NOTHING else TypeAdapter(plain, config=_STRICT)


def plain_part(annotation: Any) -> Any:
    """The plain values that an annotation allows; NOTHING if it requires an object or settings by name."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = plain_part(arguments[0])
        return NOTHING if inner is NOTHING else Annotated[inner, *annotation.__metadata__]
    if origin in (types.UnionType, typing.Union):
        parts = [part for part in map(plain_part, arguments) if part is not NOTHING]
        return typing.Union[*parts] if parts else NOTHING
    if (
        origin is Literal
        or annotation in (Any, object, None, type(None), *WORDS)
        or isinstance(annotation, typing.TypeVar)
    ):
        return Any if annotation is object else annotation
    if inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, Mapping):
        return NOTHING if NOTHING in map(plain_part, arguments) else annotation
    return annotation if annotation in (list, tuple) else NOTHING


def entries(annotation: Any) -> Callable[[str], Any] | None:
    """The annotation of each entry of settings by name; None if the annotation allows no such settings."""
    for arguments in _metadata(annotation):
        if isinstance(arguments, Arguments):
            types = types_of(arguments.of)
            return {name: types[name] for name in types if name not in arguments.given}.__getitem__
    for member in members(annotation):
        origin = get_origin(member) or member
        if member in (Any, object):
            return _same(Any)
        if typing.is_typeddict(member):
            return typing.get_type_hints(member, include_extras=True).__getitem__
        if inspect.isclass(origin) and issubclass(origin, Mapping):
            return _same(get_args(member)[1] if get_args(member) else Any)
    return None


def required(annotation: Any) -> dict[str, Any]:
    """Names and annotations of the settings that an annotation of settings by name requires."""
    for arguments in _metadata(annotation):
        if isinstance(arguments, Arguments):
            return {
                name: types_of(arguments.of)[name]
                for name, parameter in inspect.signature(arguments.of).parameters.items()
                if parameter.default is parameter.empty
                and name not in arguments.given
                and plain_part(types_of(arguments.of)[name]) is not NOTHING
            }
    typed = [member for member in members(annotation) if typing.is_typeddict(member)]
    return typing.get_type_hints(typed[0], include_extras=True) if typed else {}


def _same(annotation: Any) -> Callable[[str], Any]:
    """A function that returns the same annotation for every name."""
    return lambda name: annotation


def _metadata(annotation: Any) -> list[Any]:
    found = list(getattr(annotation, "__metadata__", ()))
    if get_origin(annotation) in (types.UnionType, typing.Union):
        found += [data for part in get_args(annotation) for data in _metadata(part)]
    return found


def describe(annotation: Any) -> str:
    """The values that an annotation allows, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = _limits(annotation.__metadata__)
        return f"{describe(arguments[0])}{limits}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(describe, arguments)))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if annotation in (None, type(None)):
        return "null"
    if origin is Callable:
        return f"settings whose _target_ makes a {_name(arguments[-1])}"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "settings by name" + (f", each {describe(arguments[1])}" if arguments[1] is not Any else "")
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list, each {describe(arguments[0])}"
    if annotation in WORDS:
        return WORDS[annotation]
    if typing.is_typeddict(annotation) or (inspect.isclass(annotation) and issubclass(annotation, Mapping)):
        return "settings by name"
    return f"settings whose _target_ makes a {_name(annotation)}"


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))


def _limits(metadata: Sequence[Any]) -> str:
    """A range in words, such as " in (0, 1]" or ", 1 or more"."""
    parts = [part for data in metadata for part in (data if isinstance(data, Interval) else (data,))]
    low = next((part for part in parts if isinstance(part, Ge | Gt)), None)
    high = next((part for part in parts if isinstance(part, Le | Lt)), None)
    least = "" if low is None else f"[{_number(low.ge)}" if isinstance(low, Ge) else f"({_number(low.gt)}"
    most = "" if high is None else f"{_number(high.le)}]" if isinstance(high, Le) else f"{_number(high.lt)})"
    if least and most:
        return f" in {least}, {most}"
    if least:
        return f", {least[1:]} or more" if least[0] == "[" else f" above {least[1:]}"
    return (f", {most[:-1]} or less" if most[-1] == "]" else f" below {most[:-1]}") if most else ""


def _number(value: Any) -> str:
    text = str(int(value) if float(value).is_integer() else value)
    return text if len(text) <= 10 else f"{value:g}"
