"""Schemas of saved state: which entries are expected, of which types and shapes.

A *state* is a nested dictionary of tensors and JSON values. A *schema* is a nested dictionary of the same keys, with a
`TensorType` where a tensor is expected, a Python type (or a tuple of types) where a JSON value is, a list of schemas
where a list is, and `Maybe` around what may be absent. Whole numbers are counts, from 0 on, and others finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbrl.errors import UserError
from mbrl.run_folder.plain_json import MAX_INTEGER

Schema = Any  # recursive: Mapping[str, Schema] | list[Schema] | TensorType | Maybe | type | tuple[type, ...]


class TensorType(NamedTuple):
    """A tensor's dtype and shape; None stands for any length of that axis."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorType:
        return cls(tensor.dtype, tuple(tensor.shape))

    def admits(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.dtype != self.dtype or value.ndim != len(self.shape):
            return False
        return all(wanted in (None, given) for wanted, given in zip(self.shape, value.shape, strict=True))

    def __str__(self) -> str:
        shape = ["any" if length is None else length for length in self.shape]
        return f"{str(self.dtype).removeprefix('torch.')} [{', '.join(map(str, shape))}]"


class Maybe(NamedTuple):
    """An entry that may be absent."""

    schema: Schema


class SchemaError(UserError):
    """A saved state does not have the expected entries, types or shapes."""


def schema_of(value: Any) -> Schema:
    """The schema that admits states of the same keys, types and shapes as `value`."""
    if isinstance(value, Tensor):
        return TensorType.of(value)
    if isinstance(value, Mapping):
        return {key: schema_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [schema_of(item) for item in value]
    return type(value)


def require(value: Any, schema: Schema, name: str) -> None:
    """Check a state against a schema.

    Args:
        value: the state. schema: what is expected. name: of the state, for the error message.

    Raises:
        SchemaError: names the first entry that is missing, unknown, or of another type or shape.
    """
    if isinstance(schema, Maybe):
        schema = schema.schema
    if isinstance(schema, Mapping):
        _require_entries(value, schema, name)
    elif isinstance(schema, list):
        if not isinstance(value, list | tuple) or len(value) != len(schema):
            raise SchemaError(f"{name} is {_describe(value)}, not a list of {len(schema)}")
        for number, (item, wanted) in enumerate(zip(value, schema, strict=True)):
            require(item, wanted, f"{name}/{number}")
    elif isinstance(schema, TensorType):
        if not schema.admits(value):
            raise SchemaError(f"{name} is {_describe(value)}, not {schema}")
    else:
        _require_type(value, schema if isinstance(schema, tuple) else (schema,), name)


def _require_entries(value: Any, schema: Mapping[str, Schema], name: str) -> None:
    if not isinstance(value, Mapping):
        raise SchemaError(f"{name} is {_describe(value)}, not a group of entries")
    missing = [key for key, wanted in schema.items() if key not in value and not isinstance(wanted, Maybe)]
    unknown = [key for key in value if key not in schema]
    for problem, keys in (("lacks", missing), ("has an unknown entry", unknown)):
        if keys:
            raise SchemaError(f"{name} {problem} {keys[0]!r}" + (f" and {len(keys) - 1} more" if keys[1:] else ""))
    for key, item in value.items():
        require(item, schema[key], f"{name}/{key}")


def _require_type(value: Any, types: tuple[type, ...], name: str) -> None:
    if float in types:
        types = (*types, int)
    # bool is a subclass of int, and no number
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types) or not _is_sane(value):
        raise SchemaError(f"{name} is {_describe(value)}, not {' or '.join(kind.__name__ for kind in types)}")


def _is_sane(value: Any) -> bool:
    """Whether a number is one that a run can have counted or computed."""
    if isinstance(value, int):
        return 0 <= value <= MAX_INTEGER
    return not isinstance(value, float) or math.isfinite(value)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(TensorType.of(value))
    if isinstance(value, Mapping):
        return "a group of entries"
    return f"{type(value).__name__} {str(value)[:40]!r}"
