"""One known episode in every layout that is read, with a place for a fault, and what reading it must give."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image
from safetensors.torch import save_file

from mbrl.data.segments import EpisodeData

LENGTH, SIDE, LEVEL, FPS = 6, 16, 20, 10  # frames, pixels, grey levels from a frame to the next, frames/s
CAMERA = "observation.images.front"
GOOD, BAD = "a-good", "b-bad"  # names of the two episodes of a folder
Change = Callable[[dict[str, Any]], Any]  # what it returns stands in the place of what it is given, unless it is None

IMAGE = np.stack([np.full((SIDE, SIDE, 3), LEVEL * t, np.uint8) for t in range(LENGTH)])
ACTION = np.arange(1, LENGTH + 1, dtype=np.float32)[:, None] * np.ones(2, np.float32)  # of row t, leading to t + 1
REWARD = 10 * np.arange(1, LENGTH + 1, dtype=np.float32)
SUCCESS = [False] * (LENGTH - 1) + [True]
DEMONSTRATION_SCALE = 0.1  # of a demonstration's actions and rewards, so that it needs no clipping and earns no bonus


def misread(data: EpisodeData, scale: float = 1.0) -> str:
    """What was read otherwise than it is in an episode of the folder; "" where all is right.

    Args:
        scale: of actions and rewards.
    """
    truths = {"action": scale * ACTION, "reward": scale * REWARD[:, None], "state": ACTION}
    for number, name in enumerate(data.names):
        segment = data.segment(number, 0, data.lengths[number])
        entries = {**segment.exclude("next"), **segment.get("next", {})}
        shown = (entries["pixels"].float().mean((1, 2, 3)) / LEVEL).round().int().tolist()
        if shown != list(range(LENGTH)):
            return f"{name} shows the frames {shown}"
        for key, truth in truths.items():
            if key in entries and not np.allclose(entries[key][:-1], truth[:-1]):
                return f"{name} has the {key} {entries[key].tolist()}"
        success = entries["success"].flatten().tolist() if "success" in entries and scale == 1 else SUCCESS
        if success != SUCCESS:
            return f"{name} has the success {success}"
    return ""


def apply(change: Change | None, entries: dict[str, Any]) -> dict[str, Any]:
    changed = change(entries) if change is not None else None
    return entries if changed is None else changed


def write_own(folder: Path, change: Change | None = None, name: str = BAD) -> Path:
    entries = {
        "pixels": torch.from_numpy(IMAGE).permute(0, 3, 1, 2).contiguous(),
        "action": torch.from_numpy(ACTION),
        "reward": torch.from_numpy(REWARD)[:, None],
        "success": torch.arange(LENGTH)[:, None] == LENGTH - 1,
        "terminated": torch.zeros(LENGTH, 1, dtype=torch.bool),
        "truncated": torch.arange(LENGTH)[:, None] == LENGTH - 2,
    }
    save_file(apply(change, entries), folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def _write_npz(folder: Path, entries: dict[str, Any], change: Change | None, name: str) -> Path:
    np.savez_compressed(folder / f"{name}.npz", **apply(change, entries))
    return folder / f"{name}.npz"


def write_video(folder: Path, change: Change | None = None, name: str = BAD) -> Path:
    return _write_npz(folder, {"image": IMAGE, "action": ACTION}, change, name)


def write_dreamer(folder: Path, change: Change | None = None, name: str = BAD) -> Path:
    first = np.arange(LENGTH) == 0
    led = np.concatenate([0 * ACTION[:1], ACTION[:-1]])
    earned = np.concatenate([0 * REWARD[:1], REWARD[:-1]])
    entries = {"image": IMAGE, "action": led, "reward": earned, "is_first": first, "is_last": first[::-1]}
    return _write_npz(folder, entries, change, name)


def write_demonstration(folder: Path, change: Change | None = None, name: str = BAD) -> Path:
    """Actions and rewards are DEMONSTRATION_SCALE times those of the other layouts."""
    pictures = IMAGE.transpose(0, 3, 1, 2)[..., ::-1]
    rows = np.arange(LENGTH, dtype=np.float32)[:, None]
    entries = {"observation": np.tile(pictures, (1, 3, 1, 1)), "action": rows / 10 * np.ones((1, 2), np.float32)}
    entries |= {"reward": rows, "discount": np.ones((LENGTH, 1), np.float32)}
    return _write_npz(folder, entries, change, name)


def png(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def _rows(index: int) -> dict[str, Any]:
    steps = list(range(LENGTH))
    return {
        "episode_index": [index] * LENGTH,
        "frame_index": steps,
        "timestamp": [step / FPS for step in steps],
        "action": ACTION.tolist(),
        "observation.state": ACTION.tolist(),
        "next.reward": REWARD.tolist(),
        "next.success": [step == LENGTH - 1 for step in steps],
    }


def _info(version: str, kind: str) -> dict[str, Any]:
    numbers = {"dtype": "float32", "shape": [2]}
    features = {CAMERA: {"dtype": kind, "shape": [SIDE, SIDE, 3]}, "action": numbers, "observation.state": numbers}
    features |= {"next.reward": numbers, "next.success": {"dtype": "bool", "shape": [1]}}
    return {"codebase_version": version, "fps": FPS, "features": features}


def write_pictures(
    folder: Path, rows: Change | None = None, *, info: Change | None = None, line: Change | None = None
) -> Path:
    """LeRobot v2.1 with pictures in its tables: a good episode 0, and the parquet file of episode 1 with the fault."""
    (folder / "meta").mkdir(parents=True)
    paths = {"chunks_size": 1000, "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
    described = apply(info, _info("v2.1", "image") | paths)
    (folder / "meta" / "info.json").write_text(described if isinstance(described, str) else json.dumps(described))
    lines = []
    for index in range(2):
        table = _rows(index) | {CAMERA: [{"bytes": png(picture), "path": None} for picture in IMAGE]}
        lines.append(apply(line if index else None, {"episode_index": index, "length": LENGTH}))
        file = folder / "data" / "chunk-000" / f"episode_{index:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(apply(rows if index else None, table)), file)
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    (folder / "meta" / "episodes.jsonl").write_text(text + "\n")
    return file


def write_videos(folder: Path, pictures: np.ndarray = IMAGE, fps: int = FPS, rows: Change | None = None) -> Path:
    """LeRobot v2.1 with a video for each episode: a good episode 0, and the video of episode 1 with the fault."""
    (folder / "meta").mkdir(parents=True)
    paths = {"chunks_size": 1000, "data_path": "data/{episode_index}.parquet", "video_path": "{episode_index}.mp4"}
    (folder / "meta" / "info.json").write_text(json.dumps(_info("v2.1", "video") | paths))
    (folder / "data").mkdir()
    for index in range(2):
        parquet.write_table(pa.table(apply(rows if index else None, _rows(index))), folder / f"data/{index}.parquet")
        _encode(folder / f"{index}.mp4", *((pictures, fps) if index else (IMAGE, FPS)))
    lines = [json.dumps({"episode_index": index, "length": LENGTH}) for index in range(2)]
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    return folder / "1.mp4"


def write_v3(folder: Path, places: Change | None = None) -> Path:
    """LeRobot v3.0: two episodes in one table and one video. The fault is in where the second one lies."""
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(
        json.dumps(_info("v3.0", "video") | {"data_path": "{chunk_index}.parquet", "video_path": "{file_index}.mp4"})
    )
    parquet.write_table(pa.concat_tables(pa.table(_rows(index)) for index in range(2)), folder / "0.parquet")
    _encode(folder / "0.mp4", np.concatenate([IMAGE, IMAGE]), FPS)
    prefix = f"videos/{CAMERA}/"
    described = {"episode_index": [0, 1], "length": [LENGTH] * 2, "data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    described |= {f"{prefix}chunk_index": [0, 0], f"{prefix}file_index": [0, 0]}
    described |= {f"{prefix}from_timestamp": [0.0, LENGTH / FPS], f"{prefix}to_timestamp": [LENGTH / FPS, 12 / FPS]}
    file = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    parquet.write_table(pa.table(apply(places, described)), file)
    return file


def _encode(path: Path, pictures: np.ndarray, fps: int) -> None:
    iio.imwrite(path, pictures, fps=fps, codec="libx264", macro_block_size=1)
