"""Statistics over all processes that train together, so that their running means and codebooks stay the same."""

import torch
from torch import Tensor, distributed


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean over the processes, each of which must call this; with one process the values as they are."""
    if not _several():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def from_first_process(values: Tensor) -> Tensor:
    """The first process's values, where each must call this with a tensor of one shape."""
    if not _several():
        return values
    shared = values.clone(memory_format=torch.contiguous_format)
    distributed.broadcast(shared, 0)
    return shared


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
