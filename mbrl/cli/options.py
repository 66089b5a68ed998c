"""Types of the options of commands, and reading an option as a setting of its type is read."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

from annotated_types import Interval

Many = Annotated[int, Interval(ge=1, le=10**6)]  # of episodes, segments, rollouts
Episodes = Annotated[int, Interval(ge=0, le=10**6)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
Videos = Annotated[int, Interval(ge=0, le=1000)]
Port = Annotated[int, Interval(ge=0, le=2**16 - 1)]  # 0 is any that is free
Seconds = Annotated[float, Interval(ge=0.1, le=86400)]


def option(annotation: Any) -> Callable[[str], Any]:
    """A function that reads an option and checks it as a setting of that type is checked."""

    def read(text: str) -> Any:
        from mbrl.settings.values import SettingError, require_value  # imports pydantic

        value: int | float | str = text
        with suppress(ValueError):
            value = float(text)
            value = int(text)
        try:
            return require_value(value, annotation, "it")
        except SettingError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed: it must be {error.allowed}") from error

    return read
