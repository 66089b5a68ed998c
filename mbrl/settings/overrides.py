"""A setting in the grammar of Hydra's overrides."""

import re
from collections.abc import Mapping
from typing import Any

UNQUOTED = re.compile(r"[A-Za-z_./][\w./-]*")  # a string that needs no quotes


def override_of(key: str, value: Any) -> str:
    """A setting as it is typed on the command line.

    Args:
        key: such as `env.task`, `agent` or `policy@agent.policy`.
        value: a string, number (NumPy's and PyTorch's too), bool, None, path, or a list or mapping of these.
    """
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if getattr(value, "shape", None) == ():  # of a library that need not be imported here
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_quoted(key)}:{_quoted(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_quoted, value)) + "]"
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    if UNQUOTED.fullmatch(text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"
