"""Exact states of an environment as vectors, observed beside what the agent sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMBERS = (bool, int, float, np.number, np.bool_)


class SnapshotLayout:
    """Packs snapshots of one environment into vectors of n numbers, and unpacks them.

    A snapshot is a dict of numbers, arrays, other values, and such dicts. Numbers and arrays are packed in the order
    of their names, each after a number that says whether it is there (1) or None (0). The other values, such as
    file names, are the same in every snapshot.

    Args:
        template: a snapshot in which nothing is None that can be a number.

    Attributes:
        size: n.
    """

    def __init__(self, template: dict[str, Any]) -> None:
        self._template = template
        self._numbers = [(path, value, int(np.size(value))) for path, value in _numbers(template)]
        self.size = sum(1 + size for _, _, size in self._numbers)

    @classmethod
    def of(cls, env: Any) -> SnapshotLayout:
        """The layout of an environment's snapshots; one step is taken, after which every attribute is set."""
        before, env.renders = env.snapshot(), False
        env.step(np.zeros(env.action_space.shape, np.float32))
        layout = cls(env.snapshot())
        env.restore(before)
        env.renders = True
        return layout

    def pack(self, snapshot: dict[str, Any]) -> Tensor:
        """The vector float64 [n] of a snapshot.

        Raises:
            ValueError: a number of it has another shape than in the template.
        """
        parts = []
        for path, like, size in self._numbers:
            value = _at(snapshot, path)
            if value is None:
                parts.append(np.zeros(1 + size))
            elif np.shape(value) != np.shape(like):
                raise ValueError(f"{'.'.join(path)} of a snapshot is {np.shape(value)}, not {np.shape(like)}")
            else:
                parts += [np.ones(1), np.asarray(value, np.float64).ravel()]
        return torch.from_numpy(np.concatenate(parts))

    def unpack(self, vector: Tensor) -> dict[str, Any]:
        """The snapshot that was packed into a vector float64 [n]. It shares values that are no numbers with others."""
        snapshot, numbers, first = _copied(self._template), vector.cpu().numpy(), 0
        for path, like, size in self._numbers:
            last = first + 1 + size
            value = _like(like, numbers[first + 1 : last]) if numbers[first] else None
            _at(snapshot, path[:-1])[path[-1]] = value
            first = last
        return snapshot


def _numbers(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The numbers and arrays of numbers in nested dicts, with their paths."""
    for key in sorted(values):
        value = values[key]
        if isinstance(value, dict):
            yield from _numbers(value, (*path, key))
        elif isinstance(value, _NUMBERS) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
            yield (*path, key), value


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested dicts, with the same values."""
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in values.items()}


def _at(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path of nested dicts."""
    for key in path:
        values = values[key]
    return values


def _like(value: Any, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Numbers [m] with the type and shape of `value`."""
    if isinstance(value, np.ndarray):
        return numbers.reshape(value.shape).astype(value.dtype)
    return type(value)(numbers[0])
