"""The device and the CPU threads of a run, torch's random generators, and whether it repeats a result to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from mbrl.errors import UserError

WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # the values with which cuBLAS repeats itself


def pick_device(name: str) -> torch.device:
    """The device of a name. `auto` is the GPU if there is one.

    A GPU that is named with its index becomes torch's current one. A GPU may from then on round the factors of float32
    matrix products to TF32, but where `exact_products` forbids it, and choose the algorithm of a convolution by trying
    them.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not is_available(name):
        names = ", ".join(found.removesuffix(":0") for found in available_devices())
        raise UserError(f"device={name} is not allowed: it must be auto, or a device of this machine: {names}")
    device = torch.device(name)
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        if device.index is not None:
            torch.cuda.set_device(device)  # Streams and graphs are made on the current one.
    return device


def is_available(name: str) -> bool:
    """Whether this machine has the device of a name, such as cuda:1."""
    try:
        device = torch.device(name)
    except RuntimeError:  # torch knows no device of this type.
        return False
    return f"{device.type}:{device.index or 0}" in available_devices()


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


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Compute with this many threads of torch, and at the end with as many as before. None changes nothing."""
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def repeating(deterministic: bool) -> Iterator[None]:
    """Compute with algorithms that give the same bits each time, on a GPU too; an operation without one is refused.

    On the CPU torch's usual algorithms do so with the same number of threads.

    Args:
        deterministic: False leaves everything as it is.

    Raises:
        UserError: the environment makes cuBLAS compute otherwise.
    """
    if not deterministic:
        yield
        return
    given = os.environ.setdefault(WORKSPACE, WORKSPACES[0])  # read when the GPU is first used
    if given not in WORKSPACES:
        raise UserError(
            f"deterministic=true needs {WORKSPACE}={WORKSPACES[0]} or {WORKSPACES[1]}, not {given}: unset it"
        )
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        _, cudnn.deterministic, cudnn.benchmark = before
