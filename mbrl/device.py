"""The device that a run computes on, and torch's random generators on it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def fork_rng() -> AbstractContextManager[None]:
    """As `torch.random.fork_rng`: torch's generators are put back at the end.

    A process that has not used a GPU stays without one: torch's own function opens a context on each, which takes
    hundreds of megabytes of its memory for every collecting worker.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    fork: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return fork
