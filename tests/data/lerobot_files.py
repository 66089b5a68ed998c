"""Tiny LeRobot data sets in both layouts, written as LeRobot writes them: parquet by pyarrow, mp4 by ffmpeg."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

FPS, HEIGHT, WIDTH = 10, 32, 48
CAMERA = "observation.images.front"


def grey(episode: int, frame: int) -> int:
    """The grey level of the middle of a frame: every frame of a data set has its own."""
    return 40 + 50 * episode + 8 * frame


def frames(episode: int, length: int) -> np.ndarray:
    """[T, 32, 48, 3]: a grey square with black to its left and right, which a centre crop takes away."""
    pictures = np.zeros((length, HEIGHT, WIDTH, 3), np.uint8)
    for frame in range(length):
        pictures[frame, :, 8:40] = grey(episode, frame)
    return pictures


def rows(episode: int, length: int) -> dict[str, list[Any]]:
    at = range(length)
    return {
        "episode_index": [episode] * length,
        "frame_index": list(at),
        "action": [[float(episode), float(t)] for t in at],
        "observation.state": [[10.0 * episode + t] * 3 for t in at],
        "next.reward": [100.0 * episode + t for t in at],
        "next.success": [t == length - 1 for t in at],
    }


def write_v2(folder: Path, lengths: list[int], *, pictures_in_parquet: bool = False) -> None:
    """Layout v2.1: a parquet file and a video for each episode."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    camera = _feature("image" if pictures_in_parquet else "video", [HEIGHT, WIDTH, 3])
    _write_info(
        folder,
        {
            "codebase_version": "v2.1",
            "chunks_size": 2,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        },
        camera,
    )
    lines = [json.dumps({"episode_index": i, "tasks": ["push"], "length": length}) for i, length in enumerate(lengths)]
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    for index, length in enumerate(lengths):
        table, chunk = rows(index, length), f"chunk-{index // 2:03d}"
        pictures = frames(index, length)
        if pictures_in_parquet:
            table[CAMERA] = [{"bytes": _png(picture), "path": None} for picture in pictures]
        else:
            _write_video(folder / "videos" / chunk / CAMERA / f"episode_{index:06d}.mp4", pictures)
        path = folder / "data" / chunk / f"episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(table), path)


def write_v3(folder: Path, lengths: list[int]) -> None:
    """Layout v3.0: all episodes in one parquet file and one video."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    info = {
        "codebase_version": "v3.0",
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    _write_info(folder, info, _feature("video", [3, HEIGHT, WIDTH]))
    tables = [pa.table(rows(index, length)) for index, length in enumerate(lengths)]
    ends = np.cumsum(lengths)
    video = f"videos/{CAMERA}/"
    episodes = {
        "episode_index": list(range(len(lengths))),
        "length": lengths,
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [0] * len(lengths),
        f"{video}chunk_index": [0] * len(lengths),
        f"{video}file_index": [0] * len(lengths),
        f"{video}from_timestamp": ((ends - lengths) / FPS).tolist(),
        f"{video}to_timestamp": (ends / FPS).tolist(),
    }
    for place, table in (("meta/episodes", pa.table(episodes)), ("data", pa.concat_tables(tables))):
        path = folder / place / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path)
    joined = np.concatenate([frames(index, length) for index, length in enumerate(lengths)])
    _write_video(folder / "videos" / CAMERA / "chunk-000" / "file-000.mp4", joined)


def _feature(kind: str, shape: list[int]) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape}


def _write_info(folder: Path, info: dict[str, Any], camera: dict[str, Any]) -> None:
    features = {
        "observation.state": _feature("float32", [3]),
        "action": _feature("float32", [2]),
        "observation.images.depth": camera | {"info": {"video.is_depth_map": True}},  # which is never read
        CAMERA: camera,
        "observation.images.wrist": camera,  # nor is this
        "next.reward": _feature("float32", [1]),
        "next.success": _feature("bool", [1]),
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info | {"fps": FPS, "features": features}))


def _write_video(path: Path, pictures: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, pictures, fps=FPS, codec="libx264", macro_block_size=1)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    iio.imwrite(buffer, picture, extension=".png")
    return buffer.getvalue()
