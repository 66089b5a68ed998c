"""Annotations of the parameters of a class or function, and the classes in them."""

from __future__ import annotations

import builtins
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

FORWARDS_TO = "__forwards_to__"  # attribute of a function: the constructor that takes its `**settings`
Function = TypeVar("Function", bound=Callable[..., Any])


class _Names(dict[str, Any]):
    """Resolves names in annotations to Any, if they are imported for type checkers only."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, key: str) -> Any:
        if key in self._known or hasattr(builtins, key):
            raise KeyError(key)  # Python then looks in the globals and builtins.
        return Any


@cache
def types_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of all parameters of a class or function by name, those that it forwards included; `return` too.

    Args:
        target: a class, whose constructor is meant, or a function.
    """
    function: Any = target.__init__ if inspect.isclass(target) else target
    forwarded = getattr(function, FORWARDS_TO, None)
    inherited = {} if forwarded is None else types_of(forwarded)
    own = typing.get_type_hints(function, localns=_Names(getattr(function, "__globals__", {})), include_extras=True)
    return {**inherited, **own}


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
        setattr(function, FORWARDS_TO, constructor)
        return function

    return declare


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, each without the metadata of `Annotated`; of another annotation, that alone."""
    if typing.get_origin(annotation) is Annotated:
        return members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return tuple(inner for part in typing.get_args(annotation) for inner in members(part))
    return (annotation,)


def class_in(annotation: Any) -> Any:
    """The class X in X, `X | None` or `Callable[..., X]`; None for any other annotation."""
    annotation = _without_none(annotation)
    if is_callable(annotation):
        return class_in(typing.get_args(annotation)[-1])
    return annotation if inspect.isclass(annotation) else None


def is_callable(annotation: Any) -> bool:
    """Whether the annotation is a `Callable[..., X]`, or that or None."""
    return typing.get_origin(_without_none(annotation)) is Callable


def _without_none(annotation: Any) -> Any:
    classes = [part for part in members(annotation) if part is not type(None)]
    return classes[0] if len(classes) == 1 else None
