"""A table of malformed data of each layout: what is wrong with it is said in one line, or it is read right."""

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from mbrl.cli.errors import show
from mbrl.data.segments import EpisodeData
from tests.faults import episodes as e
from tests.faults.malformed_tables import READ, WHOLE_SET, Write, cases
from tests.faults.runs import Result, in_child

KIND = "malformed data"
EVERY_SHORT = 16  # of the table's cases


def tried(folder: Path, *, short: bool) -> Iterator[Result]:
    """Each case of the table, or some of them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = cases()
    for name in list(table)[:: EVERY_SHORT if short else 1]:
        yield _try(folder, name, table[name])


def _try(folder: Path, name: str, write: Write) -> Result:
    data = folder / "data"
    data.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, which writes what is malformed
        write(data)
    ended = in_child(lambda: _read(name, data), folder / "log.txt")
    shutil.rmtree(data)
    if ended.is_one_clear_line and name not in READ and "cache" not in ended.error_lines[0]:
        return Result(KIND, name, "one line", ended.error_lines[0])
    if ended.code == 0 and READ.get(name, "") in ended.errors:
        return Result(KIND, name, "survived")
    return Result(KIND, name, "failed", f"exit code {ended.code}: {ended.errors[-700:]}")


def _read(name: str, data: Path) -> None:
    """Reads the folder with `strict`; where it is refused, the good episode is still read without."""
    os.environ["XDG_CACHE_HOME"] = str(data.parent / "cache")
    try:
        read = EpisodeData(data, resolution=e.SIDE, strict=True)
    except Exception as error:  # noqa: BLE001 - as the command line does
        if not name.startswith(WHOLE_SET):
            _require_right(name, EpisodeData(data, resolution=e.SIDE), 1)
        sys.exit(show(error))
    _require_right(name, read, 2)


def _require_right(name: str, read: EpisodeData, count: int) -> None:
    assert len(read) == count, f"{len(read)} episodes instead of {count}"
    wrong = e.misread(read, e.DEMONSTRATION_SCALE if name.startswith("demonstration") else 1.0)
    assert not wrong, wrong
