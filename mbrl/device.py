"""The device that a run computes on, and torch's random generators on it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def pick_device(name: str) -> torch.device:
    """The device of a name. `auto` is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def fork_rng() -> AbstractContextManager[None]:
    """Restore torch's random generators at the end, as `torch.random.fork_rng`.

    A process that has not used a GPU opens no context on one. torch's function opens one on each GPU, which would cost
    hundreds of megabytes of GPU memory for every collecting worker.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    fork: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return fork
