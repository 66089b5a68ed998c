"""Counts the file operations of a process, and does something at one of them."""

import os
from collections.abc import Callable
from typing import Any

NAMES = (
    "open", "write", "fsync", "close", "replace", "rename", "unlink", "rmdir", "mkdir", "ftruncate", "posix_fallocate",
)  # fmt: skip
Fault = Callable[[str, tuple[Any, ...]], None]


def install(at: int | None, fault: Fault | None = None) -> list[str]:
    """Wrap the file operations of `os` and return the list to which the name of each is added.

    Args:
        at: the number of the operation at which `fault` is called first. fault: given its name and arguments.
    """
    done: list[str] = []

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            number = len(done)
            done.append(name)
            if number == at and fault is not None:
                fault(name, arguments)
            return original(*arguments, **options)

        return operation

    for name in NAMES:
        setattr(os, name, wrapped(name, getattr(os, name)))
    return done
