"""SIGKILL, or SIGTERM, at every file operation of a run; a write is killed half way. Then the same command goes on."""

import json
import os
import signal
from collections.abc import Iterator
from functools import cache
from typing import Any

from mbrl.cli.main import INTERRUPTED
from tests.faults import operations
from tests.faults.runs import Result, Whole, chosen

SHORT = 2
_write = os.write


def tried(whole: Whole, *, every: int, short: bool) -> Iterator[Result]:
    kind = f"killed at a file operation, {whole.agent}"
    names = operations_of(whole)
    for number in chosen(len(names), every, SHORT if short else None):
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
    names = operations_of(whole)
    for number in chosen(len(names), every, SHORT - 1 if short else None):
        run = whole.new_folder()
        ended = whole.train(run, lambda number=number: operations.install(number, _ask))
        name = f"{names[number]}, operation {number} of {len(names)}"
        if ended.code not in (0, INTERRUPTED) or "Traceback" in ended.errors:  # 0 where it had come to its end
            yield Result(kind, name, "failed", f"exit code {ended.code}: {ended.errors[-1500:]}")
            continue
        yield whole.judge(kind, name, run)


@cache
def operations_of(whole: Whole) -> list[str]:
    """The names of all file operations of a run, in their order."""
    run, file = whole.new_folder(), whole.folder / "operations.json"

    def count() -> None:
        done = operations.install(None)
        _at_exit(lambda: file.write_text(json.dumps(done)))

    ended = whole.train(run, count)
    assert ended.code == 0, ended.errors
    names: list[str] = json.loads(file.read_text())
    return names


def _at_exit(work: Any) -> None:
    """Do the work before the process leaves by `os._exit`, as `in_child` has it."""
    leave = os._exit

    def last(code: int) -> None:
        work()
        leave(code)

    os._exit = last  # type: ignore[assignment]


def _ask(name: str, arguments: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _kill(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "write":
        descriptor, data = arguments
        _write(descriptor, memoryview(data)[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
