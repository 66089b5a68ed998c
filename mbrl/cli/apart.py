"""Calls in a process apart: the contexts that they open on GPUs, and the memory in them, are free when it ends."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from mbrl.cli.errors import explain, root_cause
from mbrl.errors import UserError


@contextmanager
def process_apart() -> Iterator[Callable[..., Any]]:
    """Yield what calls a function of a module with its arguments in a process, the same one in all of the block.

    Raises:
        UserError: that process was killed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            yield lambda work, *arguments: pool.submit(_call, work, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("a process that checks the jobs was killed: there may be too little memory here") from error


def _call(work: Callable[..., Any], *arguments: Any) -> Any:
    """Errors are explained here: those that they wrap, and where they were raised, stay in this process."""
    try:
        return work(*arguments)
    except Exception as error:
        explained = explain(root_cause(error), in_run=False)
        if explained is None:
            raise
        raise UserError(explained[0]) from None
