"""The device and the CPU threads of a run, torch's random generators, and whether it repeats a result to the bit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from mbrl.errors import UserError

WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # the values with which cuBLAS repeats itself
GENERATION = re.compile(r"(sm|compute)_(\d+)(\d)[af]?")  # in torch.cuda.get_arch_list(): sm_75, compute_120


def pick_device(name: str) -> torch.device:
    """The device of a name, for this process to compute on. `auto` is the GPU if there is one.

    A GPU that is named with its index becomes torch's current one. A GPU may from then on round the factors of float32
    matrix products to TF32, but where `exact_products` forbids it, and choose the algorithm of a convolution by trying
    them.

    Raises:
        UserError: as `find_device`.
    """
    device = find_device(name)
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        if device.index is not None:
            torch.cuda.set_device(device)  # Streams and graphs are made on the current one.
    return device


def find_device(name: str) -> torch.device:
    """The device of a name, as `pick_device`, where this process only asks for it: no memory of a GPU is taken.

    Raises:
        UserError: there is no such device, or torch cannot compute on it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not is_available(name):
        names = ", ".join(found.removesuffix(":0") for found in available_devices())
        raise UserError(f"device={name} is not allowed: it must be auto, or a device of this machine: {names}")
    device = torch.device(name)
    lacking = lacking_kernels(device.index or 0) if device.type == "cuda" else None
    if lacking:
        raise UserError(f"device={name} cannot be used: {lacking}; or set device=cpu")
    return device


def gpu_of(name: str) -> int | None:
    """The index of the GPU that a name means; None for another device, and for a GPU that is not here."""
    if name == "auto":
        name = "cuda"
    return torch.device(name).index or 0 if name.startswith("cuda") and is_available(name) else None


def lacking_kernels(gpu: int) -> str | None:
    """What to install where the installed torch has no kernels for a GPU's generation; None where it has some.

    Compiled ones (sm_75) run on GPUs of the same major version and no lower minor one. An intermediate form
    (compute_120) is compiled on any GPU of its version or a higher one.
    """
    if torch.version.cuda is None:
        return None
    mine, names = torch.cuda.get_device_capability(gpu), torch.cuda.get_arch_list()
    forms = [match.groups() for match in map(GENERATION.fullmatch, names) if match]
    built = [(form, (int(major), int(minor))) for form, major, minor in forms]
    if not built or any(low <= mine and (form == "compute" or low[0] == mine[0]) for form, low in built):
        return None
    age = "an older" if mine < min(low for _, low in built) else "a newer"
    return (
        f"torch {torch.__version__} has kernels for {', '.join(names)} and none for {torch.cuda.get_device_name(gpu)} "
        f"(sm_{mine[0]}{mine[1]}): install a build of torch for {age} version of CUDA"
    )


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
    if torch.cuda.is_available():  # The driver may be too old for torch, and the GPUs are counted all the same.
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
