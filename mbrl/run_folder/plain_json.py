"""JSON of files that may be damaged or a stranger's: bounded in depth and in the size of its numbers."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 64  # levels
MAX_INTEGER = 2**53  # of what a run counts
MAX_DIGITS = 300  # of a whole number: those of more overflow as a float


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, nested deeper than MAX_DEPTH, or has a whole number of more than MAX_DIGITS digits.
    """
    try:
        value = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _whole_number(digits: str) -> int:
    if len(digits.removeprefix("-")) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def finite_or_none(value: Any) -> Any:
    """The value; None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
