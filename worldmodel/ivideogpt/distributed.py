"""Collective operations of data-parallel training: means, broadcasts and joint decisions."""

import torch
from torch import Tensor, distributed


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean over all processes, each of which must call this; a single process gets its own values."""
    if not _several():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def from_first_process(values: Tensor) -> Tensor:
    """Values of the first process. Each process must call this, with a tensor of the same shape."""
    if not _several():
        return values
    shared = values.clone(memory_format=torch.contiguous_format)
    distributed.broadcast(shared, 0)
    return shared


def decided_by_first_process(decision: bool, device: torch.device) -> bool:
    """Decision of the first process. Each process must call this, with the device that it trains on."""
    return bool(from_first_process(torch.tensor(int(decision), device=device))) if _several() else decision


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
