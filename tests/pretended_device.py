"""A pretended GPU: tensors that say cuda:0, hold their values on the CPU, and refuse to mix with tensors of the CPU.

Under `pretended_device()` a tensor is on the GPU if its storage is marked so. Two modes keep up the pretence. The one
for functions sees calls from Python: it answers `x.device`, marks what is made on or moved to the GPU, and takes the
mark from copies to the CPU. The one for operators sees every kernel, also those of a backward pass: it refuses mixed
devices as CUDA does, marks the results, and counts.

It cannot show kernels that exist on the CPU alone, autocast to another type, streams, and how long anything takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import UninitializedTensorMixin
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pretended_graphs import is_view, pretended_graphs

GPU = torch.device("cuda:0")
ATEN = torch.ops.aten

# Operators that wait on CUDA, because the size of their result or a branch depends on values; and how often they do.
WAITING = {
    ATEN._local_scalar_dense: 1, ATEN.nonzero: 1, ATEN.masked_select: 1, ATEN.equal: 1, ATEN.is_nonzero: 1,
    ATEN._unique2: 1, ATEN.unique_consecutive: 1, ATEN.unique_dim: 1, ATEN.bincount: 2, ATEN.multinomial: 1,
}  # fmt: skip
INDEXING = (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_, ATEN._unsafe_index)
COPYING = (ATEN.copy_, ATEN._to_copy)
# Operators beside the pointwise ones that take a number on the CPU, 0-d, as an argument of a kernel.
TAKING_NUMBERS = (ATEN.masked_fill, ATEN.masked_fill_, ATEN.fill, ATEN.fill_, ATEN.where, ATEN.uniform_)
NO_KERNEL = (ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty, ATEN.new_empty_strided, ATEN.set_)


@dataclass
class Counts:
    """What a program asked of the GPU.

    Attributes:
        kernels: operators that launch at least one kernel.
        synchronisations: times that the program waited for a value from the GPU, copies to the CPU among them.
        to_gpu: copies from the CPU.
        bytes_to_gpu: what they copied.
        pageable_bytes: those of them from memory that is not pinned, which CUDA copies once more before.
        waited: where it waited: the names of the operators, and how often.
    """

    kernels: int = 0
    synchronisations: int = 0
    to_gpu: int = 0
    bytes_to_gpu: int = 0
    pageable_bytes: int = 0
    waited: Counter[str] = field(default_factory=Counter)

    def wait(self, name: str, times: int = 1) -> None:
        """Count synchronisations."""
        self.synchronisations += times
        self.waited[name] += times

    def copy(self, tensor: Tensor, pinned: bool) -> None:
        """Count a copy from the CPU."""
        self.to_gpu += 1
        self.bytes_to_gpu += tensor.nbytes
        self.pageable_bytes += 0 if pinned else tensor.nbytes


class _Marks:
    """A set of storages. A weak reference keeps the address of a storage from being used again."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._known if _is_plain(tensor) else False

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._known.setdefault(storage._cdata, StorageWeakRef(storage))
        if len(self._known) > 20_000:
            self._known = {address: ref for address, ref in self._known.items() if not ref.expired()}


def _is_plain(value: object) -> bool:
    if not isinstance(value, Tensor) or isinstance(value, UninitializedTensorMixin):
        return False
    return value.layout == torch.strided


def _tensors(*values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if _is_plain(leaf)]


class _Operators(TorchDispatchMode):
    """Checks, marks and counts every operator."""

    def __init__(self, marks: _Marks, counts: Counts) -> None:
        super().__init__()
        self.marks, self.pinned, self.counts = marks, _Marks(), counts
        self.on_gpu = False  # whether a tensor that an operator makes of no other belongs to the GPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, op = kwargs or {}, func.overloadpacket
        given = _tensors(args, kwargs)
        there = [tensor for tensor in given if tensor in self.marks]
        if there and op not in COPYING:
            self._refuse_mixture(func, op, given, _tensors(args[1]) if op in INDEXING else [])
        result = func(*args, **kwargs)
        made = _tensors(result)
        if op in COPYING:
            self._count_copy(op, args, made)
        elif there or (not given and self.on_gpu):
            self._count(func, op, args)
            for tensor in made:
                self.marks.add(tensor)
        return result

    def _refuse_mixture(self, func: Any, op: Any, given: list[Tensor], indices: list[Tensor]) -> None:
        numbers = torch.Tag.pointwise in func.tags or op in TAKING_NUMBERS or "foreach" in str(op) or "fused" in str(op)
        for tensor in given:
            if tensor in self.marks or (numbers and tensor.dim() == 0):
                continue
            if not any(tensor is index for index in indices):  # an index on the CPU is copied
                raise RuntimeError(
                    f"Expected all tensors to be on the same device: {op} got {tuple(tensor.shape)} on the CPU"
                )
            self.counts.copy(tensor, tensor in self.pinned)

    def _count(self, func: Any, op: Any, args: Any) -> None:
        if is_view(func) or op in NO_KERNEL:
            return
        self.counts.kernels += 1
        masks = op in INDEXING and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1]))
        ragged = op is ATEN.repeat_interleave
        times = WAITING.get(op, 0) + masks + ragged
        if times:
            self.counts.wait(str(op), times)

    def _count_copy(self, op: Any, args: Any, made: list[Tensor]) -> None:
        """A cast stays on its device; the mode for functions moves tensors between devices."""
        source = args[0] if op is ATEN._to_copy else args[1]
        if op is ATEN._to_copy:
            if source in self.marks:
                self.marks.add(made[0])
        elif (source in self.marks) != (args[0] in self.marks):
            if source in self.marks:
                self.counts.wait("copy to the CPU")
            elif not self.on_gpu:  # else it is a number, which fills
                self.counts.copy(source, source in self.pinned)
        if source in self.marks or (op is ATEN.copy_ and args[0] in self.marks):
            self.counts.kernels += 1


class _Functions(TorchFunctionMode):
    """Answers for devices and moves tensors between them."""

    def __init__(self, operators: _Operators) -> None:
        super().__init__()
        self.operators, self.marks, self.counts = operators, operators.marks, operators.counts
        self._special: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: self._device,
            Tensor.is_cuda.__get__: lambda x: x in self.marks,
            Tensor.is_cpu.__get__: lambda x: x not in self.marks,
            Tensor.get_device: lambda x: 0 if x in self.marks else -1,
            Tensor.cpu: lambda x, *_, **__: self._move(x, "cpu"),
            Tensor.cuda: lambda x, *_, **__: self._move(x, GPU),
            Tensor.pin_memory: lambda x: self._pin(x.clone()),
            Tensor.is_pinned: lambda x: x in operators.pinned,
            Tensor.to: self._to,
            Tensor.tolist: self._tolist,
            Tensor.numpy: self._numpy,
            Tensor.__array__: self._numpy,
            Tensor.__setitem__: self._setitem,
            Tensor.untyped_storage: torch._C.TensorBase.untyped_storage,
            torch.nn.functional.one_hot: self._one_hot,
        }  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        others = [kind for kind in types if not issubclass(kind, Tensor)]
        if others:  # a TensorDict does what is asked of it with tensors
            with self:
                return others[0].__torch_function__(func, types, args, kwargs)
        if func in self._special:
            return self._special[func](*args, **kwargs)
        where = kwargs.get("device")
        if kwargs.pop("pin_memory", False):
            return self._pin(func(*args, **kwargs))
        if where is not None:
            gpu = torch.device(where).type == "cuda"
            return self._on(gpu, func, args, kwargs | {"device": "cpu"} if gpu else kwargs, made=True)
        return self._on(any(tensor in self.marks for tensor in _tensors(args, kwargs)), func, args, kwargs)

    def _on(self, gpu: bool, func: Any, args: Any, kwargs: Any, made: bool = False) -> Any:
        """Call a function, whose new tensors belong to this device."""
        before, self.operators.on_gpu = self.operators.on_gpu, gpu
        try:
            result = func(*args, **kwargs)
        finally:
            self.operators.on_gpu = before
        if made and gpu and _is_plain(result) and result not in self.marks:  # torch.tensor of Python's numbers
            self.marks.add(result)
            self.counts.copy(result, False)
        return result

    def _pin(self, tensor: Tensor) -> Tensor:
        assert tensor not in self.marks, "only memory of the CPU can be pinned"
        self.operators.pinned.add(tensor)
        return tensor

    def _device(self, tensor: Tensor) -> torch.device:
        return GPU if tensor in self.marks else torch.device("cpu")

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        known = [*args, kwargs.get("device")]
        like = [value for value in known if isinstance(value, Tensor)]
        places = [value for value in known if isinstance(value, str | torch.device)]
        where = self._device(like[0]) if like else places[0] if places else None
        others = [like[0].dtype if isinstance(v, Tensor) else v for v in args if isinstance(v, torch.dtype | Tensor)]
        settings = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
        moved = tensor if where is None else self._move(tensor, where)
        if not others and not settings:
            return moved
        return self._on(moved in self.marks, Tensor.to, (moved, *others), settings)

    def _move(self, tensor: Tensor, where: Any) -> Tensor:
        gpu = torch.device(where).type == "cuda"
        if gpu == (tensor in self.marks):
            return tensor
        if gpu:
            self.counts.copy(tensor, tensor in self.operators.pinned)
        else:
            self.counts.wait("copy to the CPU")
        moved: Tensor = _Moved.apply(tensor, gpu, self)
        return moved

    def copy(self, tensor: Tensor, gpu: bool) -> Tensor:
        """A copy on the other device."""
        with torch.utils._python_dispatch._disable_current_modes():
            copied = tensor.detach().clone()
        if gpu:
            self.marks.add(copied)
        return copied

    def _tolist(self, tensor: Tensor) -> Any:
        if tensor in self.marks:
            self.counts.wait("tolist")
        return tensor.tolist()

    def _numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor in self.marks:
            raise TypeError("can't convert cuda:0 device type tensor to numpy: call .cpu() first")
        return tensor.numpy(*args, **kwargs) if not args and not kwargs else tensor.__array__(*args, **kwargs)

    def _setitem(self, tensor: Tensor, place: Any, value: Any) -> None:
        number = not isinstance(value, Tensor)
        self._on(number and tensor in self.marks, Tensor.__setitem__, (tensor, place, value), {})

    def _one_hot(self, tensor: Tensor, num_classes: int = -1) -> Tensor:
        """As on CUDA: without a look at the values where the number of classes is given."""
        assert num_classes > 0
        hot = tensor.new_zeros(*tensor.shape, num_classes)
        return hot.scatter_(-1, tensor.unsqueeze(-1), 1)


class _Moved(torch.autograd.Function):
    """A copy to the other device; its gradient goes back the same way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gpu: bool, functions: _Functions) -> Tensor:
        ctx.back, ctx.functions = not gpu, functions
        return functions.copy(tensor, gpu)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.functions.copy(gradient, ctx.back), None, None


@contextmanager
def pretended_device() -> Iterator[Counts]:
    """Pretend that there is a GPU `cuda:0`; yields what is counted meanwhile."""
    operators = _Operators(_Marks(), Counts())
    group = torch._C._group_tensors_by_device_and_dtype

    def group_by_device(tensors: Any, *options: Any) -> Any:
        """Of lists of tensors, as clipping and optimisers do, which ask for the device without Python."""
        groups = group(tensors, *options).items()
        return {(values[0][0].device, dtype): (values, places) for (_, dtype), (values, places) in groups}

    grouping = mock.patch("torch._C._group_tensors_by_device_and_dtype", group_by_device)
    with operators, _Functions(operators), grouping, pretended_graphs():
        yield operators.counts


def devices(tensors: Iterable[Tensor]) -> set[str]:
    """Types of the devices of tensors."""
    return {tensor.device.type for tensor in tensors}
