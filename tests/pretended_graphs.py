"""CUDA graphs played on the CPU: operators are recorded once and repeated on the same memory, with no Python between.

What Python decides or reckons between operators, such as a bias correction, stays as it was at the capture. As on
CUDA, a capture changes no values. It cannot show streams and memory pools, nor operators on the CPU in captured work,
which are repeated here and stay as they were on CUDA.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map


class Graph(TorchDispatchMode):
    """In the place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        super().__init__()
        self._operators = list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]()
        self._before = dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._keep_written(func, args, kwargs)
        given = _as_it_is((args, kwargs))
        result = func(*args, **kwargs)
        if torch.Tag.inplace_view not in func.tags and not is_view(func):  # a view shows what is in the memory
            self._operators.append((func, *given, _as_it_is(result)))
        return result

    def _keep_written(self, func: Any, args: Any, kwargs: Any) -> None:
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        with _disable_current_modes():
            for tensor in tree_leaves([given.get(name) for name in written]):
                if isinstance(tensor, Tensor):
                    storage = torch._C.TensorBase.untyped_storage(tensor)
                    if storage._cdata not in self._before:
                        self._before[storage._cdata] = (storage, storage.clone())

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Record what is done meanwhile, and undo it."""
        numbers = torch.get_rng_state()
        with self:
            yield
        torch.set_rng_state(numbers)
        with _disable_current_modes():
            for storage, before in self._before.values():
                storage.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat all operators; results go to the memory of those that were recorded."""
        for func, args, kwargs, recorded in self._operators:
            result = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tree_leaves(recorded), tree_leaves(result), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


def is_view(func: Any) -> bool:
    """Whether an operator's result is a view of what it is given."""
    returns = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returns)


def _as_it_is(values: Any) -> Any:
    """The same memory in tensors of their own, whose shapes an operator such as `unsqueeze_` does not change later."""
    with _disable_current_modes():
        return tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, values)


class Stream:
    """In the place of `torch.cuda.Stream`: all is done in the order in which it is asked for."""

    def wait_stream(self, other: object) -> None:
        """Nothing to wait for."""


@contextmanager
def pretended_graphs() -> Iterator[None]:
    """Let `torch.cuda` capture and play graphs on the CPU."""
    with (
        mock.patch("torch.cuda.Stream", Stream),
        mock.patch("torch.cuda.current_stream", Stream),
        mock.patch("torch.cuda.stream", lambda stream: nullcontext()),
        mock.patch("torch.cuda.set_device", lambda device: None),
        mock.patch("torch.cuda.CUDAGraph", Graph),
        mock.patch("torch.cuda.graph", lambda graph, stream=None: graph.capture()),
    ):
        yield
