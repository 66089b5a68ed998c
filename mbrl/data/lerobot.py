"""LeRobot data sets, layouts v2.x and v3.0: where each episode lies, and its entries.

Layouts as huggingface/lerobot writes them. v2.x: meta/episodes.jsonl; one parquet file and one video for each episode.
v3.0: meta/episodes/*/*.parquet; several episodes share a parquet file and a video, in which an episode begins at
`from_timestamp`. Paths are templates in meta/info.json. Row t of an episode holds the observation at t, the action
taken there, and under `next.` what it led to: as in our record episodes (see `mbrl.data.episodes`).

The first camera that meta/info.json names (depth maps aside) is read. pyarrow is an extra of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl.data.conversion import ExternalEpisode
from mbrl.data.frames import crop_and_resize
from mbrl.data.lerobot_info import Info, Place, Row, read_info
from mbrl.data.parquet import parquet, read_table, values
from mbrl.data.pictures import decode, stored
from mbrl.data.reading import Malformed, reading
from mbrl.data.values import flags, numbers
from mbrl.data.video import read_video
from mbrl.errors import UserError
from mbrl.run_folder.plain_json import parse_json

_AT_ONCE = 64  # frames that lie in memory at full size
_ORDER, _TIME = "frame_index", "timestamp"  # columns that a data set may lack
_TIME_TOLERANCE = 0.5  # frames

_log = logging.getLogger(__name__)


def is_lerobot(folder: Path) -> bool:
    return (folder / "meta" / "info.json").is_file()


def lerobot_episodes(folder: Path) -> list[ExternalEpisode]:
    """The episodes of a data set. One that is described wrongly raises UserError when it is read.

    Raises:
        UserError: the description of the whole set is torn or of another layout, or pyarrow is not installed.
    """
    parquet()
    info = read_info(folder)
    if info.unread:
        read = ", ".join([info.camera, *info.columns.values()])
        _log.warning("%s: of this LeRobot data set %s are read; not read: %s", folder, read, ", ".join(info.unread))
    rows = _rows_v2(folder) if info.major == 2 else _rows_v3(folder, info)
    found: dict[str, ExternalEpisode] = {}
    for name, row in rows:
        try:
            if isinstance(row, UserError):
                raise row
            place = info.locate(row)
            name, files = f"episode_{place.number:06d}", (*place.files, *info.pictures(place))
            described = repr((replace(info, folder=Path()), place.number, place.length, place.begin))
            episode = ExternalEpisode("", files, partial(_read, info, place), described)
            if name in found:
                raise UserError(f"{folder} describes {name} twice")
        except UserError as error:
            episode = ExternalEpisode("", (), partial(_refuse, error))
        while name in found:
            name += "+"
        found[name] = episode._replace(name=name)
    return list(found.values())


def _refuse(error: UserError, resolution: int | None) -> NoReturn:
    raise error


def _rows_v2(folder: Path) -> Iterator[tuple[str, Row | UserError]]:
    """Each episode's description, and its name where it has no number; or what is wrong with it."""
    path = folder / "meta" / "episodes.jsonl"
    with reading(path):
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"{path.name}, line {number}"
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
        except ValueError as error:
            yield name, UserError(f"{path}: line {number} is torn ({error})")
            continue
        yield name, row


def _rows_v3(folder: Path, info: Info) -> Iterator[tuple[str, Row | UserError]]:
    for file in sorted((folder / "meta" / "episodes").glob("*/*.parquet")):
        name = file.relative_to(folder).as_posix()
        try:
            rows = read_table(file, info.place_columns).to_pylist()
        except UserError as error:
            yield name, error
            continue
        yield from ((name, row) for row in rows)


def _read(info: Info, place: Place, resolution: int | None) -> dict[str, Tensor]:
    """The entries of one episode, frames cropped and resized as they are decoded."""
    wanted = [*info.columns.values(), *([] if place.video else [info.camera])]
    table = read_table(place.data, wanted, (_ORDER, _TIME), [("episode_index", "=", place.number)])
    with reading(place.data):
        if len(table) != place.length:
            raise Malformed(f"{len(table)} rows of episode {place.number}, not {place.length}")
        table = _in_order(table, info.fps, place)
        entries = {key: _entry(table, key, column) for key, column in info.columns.items()}
        if place.video is None:
            entries["pixels"] = _fitted(_pictures(info, place, table[info.camera].to_pylist()), resolution)
    if place.video is not None:
        frames = read_video(
            place.video, begin=place.begin, length=place.length, fps=info.fps, alone=info.major == 2,
            name=f"episode {place.number}",
        )  # fmt: skip
        entries["pixels"] = _fitted(frames, resolution)
    return entries


def _in_order(table: Any, fps: float, place: Place) -> Any:
    """The rows in the order of their frames, whose times must be those of the video."""
    frame = np.arange(place.length)
    if _ORDER in table.column_names:
        index = values(table, _ORDER).reshape(place.length, -1)[:, 0]
        order = np.argsort(index, kind="stable")
        if not np.array_equal(index[order], frame):
            raise Malformed(f"{_ORDER} of episode {place.number} does not count from 0 to {place.length - 1}")
        table = table.take(order)
    if _TIME in table.column_names:
        times = numbers(values(table, _TIME), _TIME)[:, 0].astype(np.float64)
        begin = 0.0 if place.video else times[0]  # which decides the frame of a video
        late = np.flatnonzero(~(np.abs((times - begin) * fps - frame) <= _TIME_TOLERANCE))
        if len(late):
            row = late[0]
            raise Malformed(
                f"{_TIME} of frame {row} of episode {place.number} is {times[row]:g} s, which at the "
                f"{fps:g} frames/s of meta/info.json is the time of another"
            )
    return table


def _entry(table: Any, key: str, column: str) -> Tensor:
    array = values(table, column)
    if key in ("reward", "success") and array.shape[1] != 1:
        raise Malformed(f"{column} holds {array.shape[1]} numbers a row, not one")
    return torch.from_numpy(flags(array, column) if key == "success" else numbers(array, column))


def _pictures(info: Info, place: Place, rows: list[Any]) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames [H, W, 3] of an episode, which lie in the table or in files that it names."""
    for number, row in enumerate(rows):
        name = f"{info.camera} of frame {number} of episode {place.number}"
        found = stored(row, name)
        yield decode(found if isinstance(found, bytes) else info.beside(found, place, name).read_bytes(), name)


def _fitted(frames: Iterator[npt.NDArray[np.uint8]], resolution: int | None) -> Tensor:
    """Frames [H, W, 3] as [T, 3, R, R], made small some at a time."""
    parts: list[Tensor] = []
    waiting: list[npt.NDArray[np.uint8]] = []
    for frame in frames:
        if waiting and frame.shape != waiting[0].shape:
            raise Malformed(f"its frames are of {list(waiting[0].shape)} and of {list(frame.shape)}")
        waiting.append(frame)
        if len(waiting) == _AT_ONCE:
            parts.append(_small(waiting, resolution))
            waiting = []
    return torch.cat([*parts, *([_small(waiting, resolution)] if waiting else [])])


def _small(frames: list[npt.NDArray[np.uint8]], resolution: int | None) -> Tensor:
    return crop_and_resize(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), resolution)
