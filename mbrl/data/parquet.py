"""Columns of parquet files as arrays, checked before they are cast. pyarrow is an extra of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbrl.data.reading import Malformed, reading, require_memory
from mbrl.data.values import Array
from mbrl.errors import UserError

_CELL = 8  # bytes of a number


def parquet() -> Any:
    """The module pyarrow.parquet.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as module
    except ImportError as error:
        raise UserError(
            "to read LeRobot data sets, install pyarrow: in the clone, pip install -e '.[lerobot]'"
        ) from error
    return module


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = (), filters: Any = None) -> Any:
    """Columns of a parquet file, and those of the optional ones that it has.

    Raises:
        UserError: the file is torn, lacks a column, or does not fit into memory.
    """
    with reading(path):
        with parquet().ParquetFile(path) as file:
            found, meta = file.schema_arrow.names, file.metadata
        missing = [name for name in columns if name not in found]
        if missing:
            raise Malformed(f"it lacks the column {', '.join(missing)}")
        wanted = [*columns, *(name for name in optional if name in found)]
        stored = sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
        require_memory(max(stored, meta.num_rows * len(wanted) * _CELL), path.stat().st_size, "its table")
        return parquet().read_table(path, columns=wanted, filters=filters)


def values(table: Any, name: str) -> Array:
    """A column [T, width] of numbers or booleans; lists in lists are laid out in a row.

    Raises:
        Malformed: a value is null or no number, or lists differ in length.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    flat = table[name].combine_chunks()
    while True:
        if isinstance(flat.type, pa.ExtensionType):
            flat = flat.storage
        if flat.null_count:
            raise Malformed(f"{name} holds null")
        if not (
            pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type) or pa.types.is_fixed_size_list(flat.type)
        ):
            break
        if len(compute.unique(compute.list_value_length(flat))) > 1:
            raise Malformed(f"{name} holds lists of different lengths")
        flat = flat.flatten()
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)):
        raise Malformed(f"{name} holds {flat.type}, not numbers")
    if len(flat) < len(table):
        raise Malformed(f"{name} holds empty lists")
    array: Array = flat.to_numpy(zero_copy_only=False).reshape(len(table), -1)
    return array
