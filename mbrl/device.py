"""The device that a run computes on, and torch's random generators on it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from mbrl.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device of a name. `auto` is the GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = available_devices()
    try:
        device = torch.device(name)
    except RuntimeError:  # torch knows no device of this type.
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in here:
        names = ", ".join(found.removesuffix(":0") for found in here)
        raise UserError(f"device={name} is not allowed: it must be auto, or a device of this machine: {names}")
    return device


def available_devices() -> list[str]:
    """Names of the devices of this machine with their index, such as cuda:1."""
    found = ["cpu:0"]
    found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return found + ["mps:0"] * torch.backends.mps.is_available()


def fork_rng() -> AbstractContextManager[None]:
    """Restore torch's random generators at the end, as `torch.random.fork_rng`.

    A process that has not used a GPU opens no context on one. torch's function opens one on each GPU, which would cost
    hundreds of megabytes of GPU memory for every collecting worker.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    fork: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return fork
