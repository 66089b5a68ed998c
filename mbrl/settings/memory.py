"""Refuse what would take more memory than there is, before it is taken: Linux ends a process that asks for too much."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import nn

from mbrl.errors import UserError

GIB = 2**30
COPIES = 4  # of a trained weight: itself, its gradient and Adam's two means
GROUP = Path("/sys/fs/cgroup")  # what limits a container


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on a GPU, or on this machine or in this container for any other device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # There is no limit, or its file says "max".
        limit, taken = (int((GROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        free = min(free, limit - taken + _page_cache())
    return free


def _page_cache() -> int:
    """Bytes of files that this container keeps in memory, which the kernel frees when memory is asked for."""
    lines = (GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    return sum(int(size) for name, size in map(str.split, lines) if name in ("inactive_file", "active_file"))


def require_memory(what: str, needed: int, device: torch.device) -> None:
    """Check that there is enough memory.

    Args:
        what: what needs it, for the error message.
        needed: bytes.
        device: where.

    Raises:
        UserError: says what is needed and what there is.
    """
    free = free_memory(device)
    if needed > free:
        room = f"{needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free on {device.type}"
        raise UserError(f"{what} needs {room}: make it smaller")


def require_memory_of(make: Callable[[], nn.Module], place: str, device: torch.device) -> None:
    """Check that there is enough memory to train a module.

    It is built once without memory, on torch's device `meta`, to count its weights.

    Args:
        make: builds it.
        place: key of its settings, for the error message.
        device: where it will be.

    Raises:
        UserError: there is not enough.
    """
    try:
        with torch.device("meta"):
            parameters = [*make().parameters()]
    except Exception:  # noqa: BLE001 - it cannot be built like this; what is wrong shows where it is built for use
        return
    weights = sum(p.numel() * p.element_size() * (COPIES if p.requires_grad else 1) for p in parameters)
    numbers = sum(p.numel() for p in parameters)
    require_memory(f"{place} has {numbers / 1e6:.0f} million weights: training them", weights, device)
