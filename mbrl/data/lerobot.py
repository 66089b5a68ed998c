"""LeRobot data sets, layouts v2.x and v3.0: a reader on pyarrow and ffmpeg.

Layouts as huggingface/lerobot writes them. v2.x: meta/episodes.jsonl; one parquet file and one video for each episode.
v3.0: meta/episodes/*/*.parquet; several episodes share a parquet file and a video, in which an episode begins at
`from_timestamp`. Paths are templates in meta/info.json. Row t of an episode holds the observation at t, the action
taken there, and under `next.` what it led to: as in our record episodes (see `mbrl.data.episodes`).

The first camera that meta/info.json names (depth maps aside) is read. pyarrow is an extra of this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl.data.conversion import ExternalEpisode
from mbrl.data.frames import crop_and_resize
from mbrl.errors import UserError

_COLUMNS = {"action": "action", "state": "observation.state", "reward": "next.reward", "success": "next.success"}
_AT_ONCE = 64  # frames that lie in memory at full size


@dataclass(frozen=True)
class _Episode:
    """Where one episode lies. `video` is None where the frames lie in the parquet file; `begin` in seconds."""

    index: int
    length: int
    data: Path
    camera: str
    columns: dict[str, str]
    video: Path | None
    begin: float
    fps: float


def is_lerobot(folder: Path) -> bool:
    return (folder / "meta" / "info.json").is_file()


def lerobot_episodes(folder: Path) -> list[ExternalEpisode]:
    """The episodes of a data set.

    Raises:
        UserError: its description has another layout, or pyarrow is not installed.
    """
    _parquet()
    path = folder / "meta" / "info.json"
    try:
        info = json.loads(path.read_text())
        cameras = [key for key, feature in info["features"].items() if _is_camera(feature)]
        if not cameras:
            raise UserError(f"{path}: no feature of dtype video or image")
        major = info["codebase_version"].removeprefix("v").split(".")[0]
        if major not in ("2", "3"):
            raise UserError(f"{path}: layout {info['codebase_version']} cannot be read, only v2.x and v3.0")
        locate = _locate_v2 if major == "2" else _locate_v3
        episodes = [_Episode(*row) for row in locate(folder, info, cameras[0])]
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} is no LeRobot data set that can be read ({error!r})") from error
    return [
        ExternalEpisode(f"episode_{e.index:06d}", (e.data, e.video) if e.video else (e.data,), partial(_read, e))
        for e in episodes
    ]


def _locate_v2(folder: Path, info: dict[str, Any], camera: str) -> Iterator[tuple[Any, ...]]:
    for line in (folder / "meta" / "episodes.jsonl").read_text().splitlines():
        row = json.loads(line)
        index = row["episode_index"]
        place = {"episode_index": index, "episode_chunk": index // info["chunks_size"], "video_key": camera}
        data = _inside(folder, info["data_path"].format(**place))
        video = _inside(folder, info["video_path"].format(**place)) if _in_video(info, camera) else None
        yield index, row["length"], data, camera, _columns(info), video, 0.0, info["fps"]


def _locate_v3(folder: Path, info: dict[str, Any], camera: str) -> Iterator[tuple[Any, ...]]:
    in_video = _in_video(info, camera)
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    names = [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    for file in sorted((folder / "meta" / "episodes").glob("*/*.parquet")):
        for row in _read_table(file, columns=columns + names * in_video).to_pylist():
            index, length, *place = (row[name] for name in columns)
            data = _inside(folder, info["data_path"].format(chunk_index=place[0], file_index=place[1]))
            video, begin = None, 0.0
            if in_video:
                chunk, number, begin = (row[name] for name in names)
                path = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=number)
                video = _inside(folder, path)
            yield index, length, data, camera, _columns(info), video, begin, info["fps"]


def _inside(folder: Path, path: str) -> Path:
    """A file that the description names.

    Raises:
        UserError: the file is outside the data set's folder.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(f"{folder}: its description names {path!r}, which lies outside of it")
    return folder / path


def _is_camera(feature: dict[str, Any]) -> bool:
    details = feature.get("info") or {}
    depth = any(value for name, value in details.items() if name.endswith("is_depth_map"))
    return feature["dtype"] in ("video", "image") and not depth


def _in_video(info: dict[str, Any], camera: str) -> bool:
    return bool(info["features"][camera]["dtype"] == "video")


def _columns(info: dict[str, Any]) -> dict[str, str]:
    return {key: column for key, column in _COLUMNS.items() if column in info["features"]}


def _read(episode: _Episode, resolution: int | None) -> dict[str, Tensor]:
    """The entries of one episode, frames cropped and resized as they are decoded."""
    wanted = [*episode.columns.values(), *([] if episode.video else [episode.camera])]
    table = _read_table(episode.data, columns=wanted, filters=[("episode_index", "=", episode.index)])
    if len(table) != episode.length:
        raise UserError(f"{episode.data}: {len(table)} rows of episode {episode.index}, not {episode.length}")
    frames = _pictures(table[episode.camera].to_pylist()) if episode.video is None else _video(episode)
    entries = {"pixels": torch.cat(list(_fitted(frames, resolution)))}
    for key, column in episode.columns.items():
        flat = table[column].combine_chunks()
        while "list" in str(flat.type):
            flat = flat.flatten()
        rows = flat.to_numpy(zero_copy_only=False).reshape(episode.length, -1)
        entries[key] = torch.from_numpy(rows.astype(bool if key == "success" else np.float32))
    return entries


def _pictures(rows: list[dict[str, Any]]) -> Iterator[npt.NDArray[np.uint8]]:
    # given a text, imageio would open the file or the address that it names
    return (np.asarray(iio.imread(bytes(row["bytes"]), plugin="pillow"), np.uint8)[..., :3] for row in rows)


def _video(episode: _Episode) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames [H, W, 3] of an episode.

    Raises:
        UserError: the video is torn or too short.
    """
    # half a frame early, so that rounding cannot lose the first one; every frame as it is stored, none made up
    seek = ["-ss", f"{max(0.0, episode.begin - 0.5 / episode.fps):.6f}"]
    exact = ["-fps_mode", "passthrough", "-frames:v", str(episode.length)]
    count = 0
    try:
        frames = imageio_ffmpeg.read_frames(episode.video, input_params=seek, output_params=exact)
        width, height = next(frames)["size"]
        for frame in frames:
            count += 1
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{episode.video}: ffmpeg cannot read it, it may be torn") from error
    if count != episode.length:
        raise UserError(f"{episode.video}: {count} frames of episode {episode.index}, not {episode.length}")


def _fitted(frames: Iterator[npt.NDArray[np.uint8]], resolution: int | None) -> Iterator[Tensor]:
    """Frames [H, W, 3] as [n, 3, R, R], some at a time."""
    waiting: list[npt.NDArray[np.uint8]] = []
    for frame in frames:
        waiting.append(frame)
        if len(waiting) == _AT_ONCE:
            yield crop_and_resize(torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2), resolution)
            waiting = []
    if waiting:
        yield crop_and_resize(torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2), resolution)


def _read_table(path: Path, **options: Any) -> Any:
    try:
        return _parquet().read_table(path, **options)
    except (ValueError, OSError, KeyError) as error:  # pyarrow's own errors are of these kinds
        raise UserError(f"{path}: torn or of another layout ({error})") from error


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError("to read LeRobot data sets, install pyarrow: pip install -e '.[lerobot]'") from error
    return parquet
