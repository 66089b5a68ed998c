"""Requests of the browser: JSON messages, checked before anything acts on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from mbrl.errors import UserError

MAX_LETTERS = 4096  # of a message
MAX_NAME = 200
MAX_NUMBER = 2**31
SPEEDS = (1, 30)  # steps per second


class Command(NamedTuple):
    """A message that is well formed.

    Attributes:
        name: a key of COMMANDS.
        values: its arguments.
    """

    name: str
    values: dict[str, Any]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
        raise UserError("is not a number in range")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_NUMBER:
        raise UserError("is not a whole number from 0 on")
    return value


def _speed(value: Any) -> float:
    if not SPEEDS[0] <= _number(value) <= SPEEDS[1]:
        raise UserError(f"is not {SPEEDS[0]} to {SPEEDS[1]} steps per second")
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError("is neither true nor false")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise UserError("is no name")
    return value


def _action(value: Any) -> list[float]:
    if not isinstance(value, list) or not all(abs(_number(each)) <= 1 for each in value):
        raise UserError("is no list of numbers in [-1, 1]")
    return [float(each) for each in value]


def _goal(value: Any) -> int | None:
    return None if value is None else _count(value)


Check = Callable[[Any], Any]
COMMANDS: dict[str, dict[str, Check]] = {
    "act": {"action": _action, "held": _switch, "number": _count},
    "play": {"on": _switch},
    "step": {},
    "speed": {"value": _speed},
    "temperature": {"value": _number},
    "reset": {"goal": _goal},
    "rewind": {"index": _count},
    "branch": {"index": _count},
    "select": {"branch": _count},
    "close": {"branch": _count},
    "reality": {},
    "drive": {"driver": _name},
    "pictures": {"source": _name, "episode": _count},
    "start": {"source": _name, "episode": _count, "step": _count},
    "save": {},
    "video": {},
    "steer": {},
}


def parse(text: str) -> Command:
    """Read a message.

    Raises:
        UserError: it is too long, no JSON, or not a command with its arguments.
    """
    if len(text) > MAX_LETTERS:
        raise UserError(f"a message of {len(text)} letters is too long: {MAX_LETTERS} are the most")
    try:
        message = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError("a message that is no JSON") from error
    name = message.get("command") if isinstance(message, dict) else None
    if not isinstance(name, str) or name not in COMMANDS:
        raise UserError(f"no such command; there are {', '.join(COMMANDS)}")
    checks, given = COMMANDS[name], set(message) - {"command"}
    if given != set(checks):
        raise UserError(f"{name} has the arguments {', '.join(checks) or 'none'}, all of them and no others")
    values = {}
    for key, check in checks.items():
        try:
            values[key] = check(message[key])
        except UserError as error:
            raise UserError(f"{name}: {key} {error}") from error
    return Command(name, values)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
