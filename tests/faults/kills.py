"""SIGKILL, or SIGTERM, at every file operation of a run; a write is killed half way. Then the same command goes on."""

import os
import signal
from collections.abc import Iterator
from typing import Any

from mbrl.cli.main import INTERRUPTED
from tests.faults import operations
from tests.faults.runs import Result, Whole, chosen

SHORT = 1
_write = os.write


def tried(whole: Whole, *, every: int, short: bool) -> Iterator[Result]:
    kind = f"killed at a file operation, {whole.agent}"
    names = whole.operations
    able = [number for number, name in enumerate(names) if name == "write" or not short]
    for number in (able[place] for place in chosen(len(able), every, SHORT if short else None)):
        run = whole.new_folder()
        ended = whole.train(run, lambda number=number: operations.install(number, _kill))
        name = f"{names[number]}, operation {number} of {len(names)}"
        if ended.code != -signal.SIGKILL:
            yield Result(kind, name, "failed", f"it was not killed: {ended.errors[-300:]}")
            continue
        yield whole.judge(kind, name, run)


def asked(whole: Whole, *, every: int, short: bool) -> Iterator[Result]:
    """SIGTERM at every file operation: the run leaves as at SIGINT, and the same command goes on to the same end."""
    kind = f"SIGTERM at a file operation, {whole.agent}"
    names = whole.operations
    for number in chosen(len(names), every, SHORT if short else None):
        run = whole.new_folder()
        ended = whole.train(run, lambda number=number: operations.install(number, _ask))
        name = f"{names[number]}, operation {number} of {len(names)}"
        if ended.code not in (0, INTERRUPTED) or "Traceback" in ended.errors:  # 0 where it had come to its end
            yield Result(kind, name, "failed", f"exit code {ended.code}: {ended.errors[-1500:]}")
            continue
        yield whole.judge(kind, name, run)


def _ask(name: str, arguments: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _kill(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "write":
        descriptor, data = arguments
        _write(descriptor, memoryview(data)[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
