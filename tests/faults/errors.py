"""An I/O error at every file operation of a run: it ends with one clear line, and the same command goes on."""

import errno
import os
import shutil
from collections.abc import Iterator
from typing import Any

from tests.faults import operations
from tests.faults.runs import Result, Whole, chosen

SHORT = 1
CODES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENOMEM)


def tried(whole: Whole, *, every: int, short: bool) -> Iterator[Result]:
    """Each operation fails with the next of CODES."""
    kind = f"I/O error at a file operation, {whole.agent}"
    names = whole.operations
    # Linux reports no error of closing a file on a disk
    able = [number for number, name in enumerate(names) if (name == "write" if short else name != "close")]
    for number in (able[place] for place in chosen(len(able), every, SHORT if short else None)):
        code, run = CODES[number % len(CODES)], whole.new_folder()

        def fail(name: str, arguments: tuple[Any, ...], code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        ended = whole.train(run, lambda number=number, fail=fail: operations.install(number, fail))
        name = f"{errno.errorcode[code]} at {names[number]}, operation {number} of {len(names)}"
        if ended.code == 0:  # what it does without: removing something, which the next start does then
            yield whole.judge(kind, name, run)
        elif not ended.is_one_clear_line:
            yield Result(kind, name, "failed", f"exit code {ended.code}: {ended.errors[-1500:]}")
            shutil.rmtree(run, ignore_errors=True)
        else:
            judged = whole.judge(kind, name, run)
            yield judged._replace(outcome="one line") if judged.outcome == "survived" else judged
