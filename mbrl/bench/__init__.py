"""Benchmarks. The `run()` of each module here returns or yields rows of name, value, unit and target.

Modules whose names start with an underscore are parts of benchmarks.
"""

import difflib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules

import torch

from mbrl.errors import UserError
from mbrl.malloc import keep_freed_memory

Row = dict[str, object]

ON_REQUEST = {"memory", "gpu"}  # takes minutes and gigabytes; needs a GPU
ON_DEVICE = ("gpu",)  # those that measure a chosen device; the others measure the CPU


def names() -> list[str]:
    """Names of all benchmarks."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def run_benchmarks(chosen: Sequence[str] = (), device: str | None = None) -> Iterator[Row]:
    """Run benchmarks, and yield each row when it is measured.

    Args:
        chosen: names of the benchmarks. Empty for all but those in ON_REQUEST or, with a device, for those in
            ON_DEVICE.
        device: what those in ON_DEVICE measure, such as cuda:1; None for the first GPU.

    Raises:
        UserError: a name or the device does not exist, or a chosen benchmark cannot use the device. It is raised before
            the first benchmark runs.
    """
    keep_freed_memory()  # A training run does so too.
    known = names()
    for name in chosen:
        if name not in known:
            close = difflib.get_close_matches(name, known) or known
            raise UserError(f"no benchmark named {name!r}; there are: {', '.join(close)}")
        if device is not None and name not in ON_DEVICE:
            raise UserError(f"the benchmark {name!r} measures the CPU: --device is for {', '.join(ON_DEVICE)}")
    default = ON_DEVICE if device is not None else [name for name in known if name not in ON_REQUEST]
    names_to_run = chosen or default
    options = {name: _on(device or "cuda") if name in ON_DEVICE else {} for name in names_to_run}
    return (row for name in names_to_run for row in import_module(f"{__name__}.{name}").run(**options[name]))


def _on(device: str) -> dict[str, str]:
    if not device.startswith("cuda"):
        raise UserError(f"--device {device} is no GPU with CUDA: give cuda, or cuda:1 for the second one")
    if not torch.cuda.is_available():
        raise UserError("this machine has no GPU that torch can use; mbrl doctor says why")
    return {"device": device}
