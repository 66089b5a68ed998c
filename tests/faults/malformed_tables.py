"""Malformed data of each layout: what is wrong with it, and what writes it beside a good episode."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.faults import episodes as e

Write = Callable[[Path], Any]  # writes the folder, with a good episode and the malformed one
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def put(**values: Any) -> e.Change:
    """Replace entries; None removes one."""

    def change(entries: dict[str, Any]) -> dict[str, Any]:
        changed = {key: value(entries[key]) if callable(value) else value for key, value in values.items()}
        return {key: value for key, value in (entries | changed).items() if value is not None}

    return change


def cell(column: str, value: Any, row: int = 3) -> e.Change:
    """Replace one value of a column."""

    def change(table: dict[str, Any]) -> None:
        table[column] = [value if number == row else old for number, old in enumerate(table[column])]

    return change


def every(column: str, value: Callable[[Any], Any] | Any) -> e.Change:
    """Replace each value of a column."""

    def change(table: dict[str, Any]) -> None:
        table[column] = [value(old) if callable(value) else value for old in table[column]]

    return change


def renamed(column: str, name: str) -> e.Change:
    return lambda table: {name if key == column else key: value for key, value in table.items()}


def picture(convert: Callable[[np.ndarray], bytes]) -> e.Change:
    """Each picture of the table as `convert` makes it of an array."""

    def change(table: dict[str, Any]) -> None:
        table[e.CAMERA] = [{"bytes": convert(image), "path": None} for image in e.IMAGE]

    return change


def bytes_of(write: Callable[..., Path], content: Callable[[bytes], bytes] | bytes) -> Write:
    """The layout as it is, then other bytes in the malformed episode's file."""

    def make(folder: Path) -> None:
        file = write(folder)
        file.write_bytes(content(file.read_bytes()) if callable(content) else content)

    return make


DAMAGES: dict[str, Callable[[bytes], bytes] | bytes] = {
    "a Git LFS pointer": POINTER.encode(),
    "emptied": b"",
    "zeroed": lambda content: bytes(len(content)),
    "cut in half": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-30],
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x04evil\x94.",
    "text": b"no such file\n" * 40,
}


def _own(change: e.Change) -> Write:
    return lambda folder: (e.write_own(folder, name=e.GOOD), e.write_own(folder, change))


def _npz(write: Callable[..., Path], change: e.Change | None = None) -> Write:
    return lambda folder: (write(folder, name=e.GOOD), write(folder, change))


def _huge_array(folder: Path) -> None:
    """44 GB of zeros, of which 44 MB or less lie in the archive: here its header alone."""
    e.write_video(folder, name=e.GOOD)
    header = np.lib.format.magic(1, 0)
    text = repr({"descr": "|u1", "fortran_order": False, "shape": (3_600_000, 64, 64, 3)}).ljust(117) + "\n"
    with zipfile.ZipFile(folder / f"{e.BAD}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header + struct.pack("<H", len(text)) + text.encode())


def _array_alone(folder: Path) -> None:
    e.write_video(folder, name=e.GOOD)
    np.save(folder / "x.npy", e.IMAGE)
    (folder / "x.npy").rename(folder / f"{e.BAD}.npz")


def _folder(folder: Path) -> None:
    e.write_own(folder, name=e.GOOD)
    (folder / f"{e.BAD}.npz").symlink_to(folder / "nowhere.npz")


def _rgba(alpha: int) -> Callable[[np.ndarray], bytes]:
    return lambda image: e.png(np.concatenate([image, np.full_like(image[..., :1], alpha)], -1))


def _beside(folder: Path) -> None:
    """Pictures in files beside the table, as LeRobot keeps them while it records."""

    def change(table: dict[str, Any]) -> None:
        table[e.CAMERA] = [{"bytes": None, "path": f"frame_{t:06d}.png"} for t in range(e.LENGTH)]

    e.write_pictures(folder, change)
    place = folder / "images" / e.CAMERA / "episode_000001"
    place.mkdir(parents=True)
    for t, image in enumerate(e.IMAGE):
        (place / f"frame_{t:06d}.png").write_bytes(e.png(image))


def _shuffled(table: dict[str, Any]) -> dict[str, Any]:
    return {key: [values[place] for place in (2, 0, 1, 5, 4, 3)] for key, values in table.items()}


def _without(write: Callable[..., Path], name: str) -> Write:
    def make(folder: Path) -> None:
        write(folder)
        (folder / name).unlink()

    return make


OWN = {
    "pixels of floats": put(pixels=lambda v: v.float()),
    "pixels that are not square": put(pixels=lambda v: v[..., :-2].contiguous()),
    "pixels without a side": put(pixels=lambda v: v[..., :0, :0].contiguous()),
    "no pixels": put(pixels=None),
    "one frame": lambda entries: {key: value[:1].contiguous() for key, value in entries.items()},
    "an action in float64": put(action=lambda v: v.double()),
    "an action of whole numbers": put(action=lambda v: v.long()),
    "an action without numbers": put(action=lambda v: v[:, :0].contiguous()),
    "an action with NaN": put(action=lambda v: v * float("nan")),
    "an action on another axis": put(action=lambda v: v[:, 0].contiguous()),
    "an action that is too short": put(action=lambda v: v[:-1].contiguous()),
    "a reward of two numbers": put(reward=lambda v: v.repeat(1, 2)),
    "a reward without rows": put(reward=torch.tensor(1.0)),
    "success as numbers": put(success=lambda v: v.float()),
    "success as NaN": put(success=lambda v: v * float("nan")),
}
VIDEO = {
    "int64 frames": put(image=lambda v: v.astype(np.int64), aux1_image=e.IMAGE.astype(np.int64)),
    "int64 frames above 255": put(image=lambda v: v.astype(np.int64) * 4),
    "negative frames": put(image=lambda v: v.astype(np.int32) - 1),
    "16-bit frames": put(image=lambda v: v.astype(np.uint16)),
    "frames of floats": put(image=lambda v: v.astype(np.float32)),
    "channels first": put(image=lambda v: v.transpose(0, 3, 1, 2)),
    "grey frames": put(image=lambda v: v[..., :1]),
    "grey frames without an axis": put(image=lambda v: v[..., 0]),
    "frames with alpha": put(image=lambda v: np.concatenate([v, v[..., :1]], -1)),
    "no frame": put(image=lambda v: v[:0]),
    "frames without a side": put(image=lambda v: v[:, :0]),
    "one frame": put(image=lambda v: v[:1], action=None),
    "frames that are text": put(image=np.array(["a", "b"])),
    "frames that are objects": put(image=np.array([None, {}], dtype=object)),
    "frames in a record": put(image=np.zeros(6, dtype=[("r", "u1"), ("g", "u1")])),
    "an action that is text": put(action=np.array([["1", "2"]] * e.LENGTH)),
    "an action of objects": put(action=np.array([[1, None]] * e.LENGTH, dtype=object)),
    "a complex action": put(action=lambda v: v + 1j),
    "dates for an action": put(action=np.full((e.LENGTH, 1), "2020-01-01", "M8[D]")),
    "an action with NaN": put(action=lambda v: v * np.nan),
    "an infinite action": put(action=lambda v: v * np.inf),
    "an action beyond float32": put(action=np.full((e.LENGTH, 2), 1e300)),
    "an action on one axis": put(action=lambda v: v[:, 0]),
    "an action of no numbers": put(action=lambda v: v[:, :0]),
    "an action that is too short": put(action=lambda v: v[:-2]),
    "an action that is a number": put(action=np.float32(1)),
    "an action in float64": put(action=lambda v: v.astype(np.float64)),
    "an action less": put(action=lambda v: v[:-1]),
    "actions by another name": lambda entries: {"image": entries["image"], "actions": entries["action"]},
    "frames by another name": lambda entries: {"rgb_static": entries["image"], "action": entries["action"]},
    "one step of CALVIN": lambda entries: {"rgb_static": entries["image"][0], "rel_actions": entries["action"][0]},
    "a reward, and nothing about time": put(reward=e.REWARD),
    "ends of episodes that are not told how": put(terminals=np.zeros(e.LENGTH, bool)),
    "nothing": lambda entries: {"x": np.zeros(1)},
}  # fmt: skip
DREAMER = {
    "as it is": put(),
    "of the first version": put(is_first=None, is_last=None, discount=np.ones(e.LENGTH, np.float32)),
    "a reward of two axes": put(reward=lambda v: v[:, None]),
    "no reward": put(reward=None),
    "more observations": put(vector=np.zeros((e.LENGTH, 3), np.float32)),
    "an action taken at the frame": put(action=e.ACTION),
    "a reward in the first frame": put(reward=e.REWARD),
    "a reward that is text": put(reward=np.array(["1"] * e.LENGTH)),
    "a reward with NaN": put(reward=lambda v: v * np.nan),
    "a reward of objects": put(reward=np.array([[1]] * (e.LENGTH - 1) + [None], dtype=object)),
    "a reward that is too short": put(reward=lambda v: v[:-1]),
    "several episodes": put(is_first=np.arange(e.LENGTH) % 3 == 0),
    "an end in the middle": put(is_last=np.arange(e.LENGTH) == 2),
    "a beginning that is no flag": put(is_first=np.full(e.LENGTH, 0.5)),
    "a beginning that is text": put(is_first=np.array(["True"] * e.LENGTH)),
    "an action less": put(action=lambda v: v[:-1]),
    "grey frames": put(image=lambda v: v[..., :1]),
}
DEMONSTRATION = {
    "another time convention": put(terminals=np.zeros(e.LENGTH)),
    "a reward that is text": put(reward=np.array([["1"]] * e.LENGTH)),
    "observations of floats": put(observation=lambda v: v.astype(np.float32)),
    "observations that are no pictures": put(observation=np.zeros((e.LENGTH, 39), np.float32)),
    "observations without a side": put(observation=lambda v: v[..., :0, :0]),
    "one row": lambda entries: {key: value[:1] for key, value in entries.items()},
    "an action with NaN": put(action=lambda v: v * np.nan),
    "no action": put(action=None),
}
ROWS = {
    "as they are": None,
    "in another order": _shuffled,
    "frame_index twice": cell("frame_index", 2),
    "frame_index with null": cell("frame_index", None),
    "frame_index as text": every("frame_index", str),
    "timestamps of another rate": every("timestamp", lambda t: t / 3),
    "timestamps with null": cell("timestamp", None),
    "no frame_index": put(frame_index=None),
    "success with null": lambda table: table | {"next.success": [None] * (e.LENGTH - 1) + [0]},
    "success as text": every("next.success", str),
    "success in lists": every("next.success", lambda v: [v]),
    "success in lists of two": every("next.success", lambda v: [v, v]),
    "success with NaN": every("next.success", float("nan")),
    "success as a half": every("next.success", 0.5),
    "success as 0 and 1": every("next.success", int),
    "success as objects": every("next.success", lambda v: {"is": v}),
    "reward with null": cell("next.reward", None),
    "reward as text": every("next.reward", str),
    "reward with NaN": cell("next.reward", float("nan")),
    "reward beyond float32": cell("next.reward", 1e300),
    "reward in lists": every("next.reward", lambda v: [v]),
    "reward in lists of two": every("next.reward", lambda v: [v, v]),
    "an action that is null": cell("action", None),
    "an action with null": cell("action", [None, 1.0]),
    "an action with NaN": cell("action", [float("nan"), 1.0]),
    "actions of different lengths": lambda table: table | {"action": [[1.0], [2.0] * 3, *e.ACTION.tolist()[2:]]},
    "actions as text": every("action", lambda v: [str(x) for x in v]),
    "actions in lists in lists": every("action", lambda v: [[x] for x in v]),
    "empty actions": every("action", lambda v: []),
    "no action": put(action=None),
    "grey pictures": picture(lambda image: e.png(image[..., 0])),
    "bilevel pictures": picture(lambda image: e.png(Image.fromarray(image).convert("1"))),
    "16-bit pictures": picture(lambda image: e.png(image[..., 0].astype(np.uint16) * 256)),
    "pictures with a palette": picture(lambda image: e.png(Image.fromarray(image).convert("P"))),
    "CMYK pictures": picture(lambda image: e.png(Image.fromarray(image).convert("CMYK"), "JPEG")),
    "opaque pictures with alpha": picture(_rgba(255)),
    "transparent pictures": picture(_rgba(0)),
    "pictures of floats": picture(lambda image: e.png(Image.fromarray(image[..., 0].astype(np.float32)), "TIFF")),
    "moving pictures": picture(lambda image: e.png(
        Image.fromarray(image), "GIF", save_all=True, append_images=[Image.fromarray(255 - image)])),
    "JPEG pictures": picture(lambda image: e.png(image, "JPEG", quality=95)),
    "PostScript pictures": picture(lambda image: e.png(image, "EPS")),
    "pictures of different sizes": cell(e.CAMERA, {"bytes": e.png(e.IMAGE[3][:8, :8]), "path": None}),
    "a torn picture": cell(e.CAMERA, {"bytes": e.png(e.IMAGE[3])[:40], "path": None}),
    "a picture without its end": cell(e.CAMERA, {"bytes": e.png(e.IMAGE[3])[:-20], "path": None}),
    "no picture": cell(e.CAMERA, {"bytes": None, "path": None}),
    "null for a picture": cell(e.CAMERA, None),
    "empty pictures": every(e.CAMERA, {"bytes": b"", "path": ""}),
    "pictures that are paths": every(e.CAMERA, lambda v: "frame.png"),
    "pictures outside": every(e.CAMERA, {"bytes": None, "path": "/etc/hostname"}),
    "pictures that are numbers": every(e.CAMERA, 7),
    "pictures that are bytes": every(e.CAMERA, lambda v: v["bytes"]),
}  # fmt: skip
LINES = {
    "length null": put(length=None), "length as text": put(length="6"), "length negative": put(length=-6),
    "length a fraction": put(length=6.5), "length too small": put(length=5), "length too large": put(length=7),
    "no number": put(episode_index=None), "number as text": put(episode_index="1"), "number negative": put(
        episode_index=-1), "number twice": put(episode_index=0), "number true": put(episode_index=True),
    "torn": lambda line: '{"episode_index": 1, "len', "a list": lambda line: "[1, 6]",
    "nested deep": lambda line: "[" * 900 + "]" * 900, "nested very deep": lambda line: "[" * 100_000,
    "a huge number": lambda line: '{"episode_index": ' + "9" * 4000 + ', "length": 6}', "a word": lambda line: "null",
}  # fmt: skip
INFO = {
    "with a byte-order mark": lambda info: "\ufeff" + json.dumps(info),
    "torn": lambda info: json.dumps(info)[:-30],
    "a list": lambda info: "[]",
    "nested deep": lambda info: "[" * 900 + "]" * 900,
    "no features": put(features=None), "features a list": put(features=[1]),
    "features of text": put(features={"a": "b"}),
    "no camera": put(features=lambda v: {"action": v["action"]}),
    "fps 0": put(fps=0), "fps as text": put(fps="10"), "no fps": put(fps=None), "fps infinite": put(fps=float("inf")),
    "version 1": put(codebase_version="v1.6"), "version a number": put(codebase_version=2.1),
    "no chunks": put(chunks_size=None), "chunks 0": put(chunks_size=0),
    "paths outside": put(data_path="../{episode_index}.parquet"),
    "absolute paths": put(data_path="/tmp/{episode_index}.parquet"),
    "paths that look into numbers": put(data_path="{episode_index.real}.parquet"),
    "paths of a gigabyte": put(data_path="{episode_index:0999999999d}.parquet"),
    "paths of unknown names": put(data_path="{shard}.parquet"),
    "paths with a loose brace": put(data_path="{episode_index.parquet"),
    "no paths": put(data_path=None), "paths a number": put(data_path=3),
    "columns of relatives": put(features=lambda v: {**v, "wrist_image": {"dtype": "image"}}),
}  # fmt: skip
PLACES = {
    "as they are": None,
    "half a frame late": put(**{f"videos/{e.CAMERA}/from_timestamp": [0.0, 0.65]}),
    "one frame early": put(**{f"videos/{e.CAMERA}/from_timestamp": [0.0, 0.4]}),
    "before the video": put(**{f"videos/{e.CAMERA}/from_timestamp": [0.0, -0.6]}),
    "at no time": put(**{f"videos/{e.CAMERA}/from_timestamp": [0.0, None]}),
    "at NaN": put(**{f"videos/{e.CAMERA}/from_timestamp": [0.0, float("nan")]}),
    "after the video": put(**{f"videos/{e.CAMERA}/from_timestamp": [0.0, 60.0], f"videos/{e.CAMERA}/to_timestamp": [
        0.6, 60.6]}),
    "in a file that is missing": put(**{"data/chunk_index": [0, 7]}),
    "in a file without a number": put(**{"data/chunk_index": [0, None]}),
    "of no length": put(length=[6, 0]),
}  # fmt: skip
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n"


def _pipe(write: Callable[[Path], Path]) -> Write:
    def damage(folder: Path) -> None:
        file = write(folder)
        file.unlink()
        os.mkfifo(file)

    return damage


def cases() -> dict[str, Write]:
    """What writes each folder, by what is wrong with it."""
    table: dict[str, Write] = {f"own: {name}": _own(change) for name, change in OWN.items()}
    for layout, write, changes in (
        ("video", e.write_video, VIDEO),
        ("Dreamer", e.write_dreamer, DREAMER),
        ("demonstration", e.write_demonstration, DEMONSTRATION),
    ):
        table |= {f"{layout}: {name}": _npz(write, change) for name, change in changes.items()}
    table |= {f"LeRobot rows: {name}": lambda f, c=change: e.write_pictures(f, c) for name, change in ROWS.items()}
    table |= {f"LeRobot line: {name}": lambda f, c=c: e.write_pictures(f, line=c) for name, c in LINES.items()}
    table |= {f"LeRobot info: {name}": lambda f, c=c: e.write_pictures(f, info=c) for name, c in INFO.items()}
    table |= {f"LeRobot v3, an episode: {name}": lambda f, c=c: e.write_v3(f, c) for name, c in PLACES.items()}
    for layout, write in (
        ("own", lambda folder: (e.write_own(folder, name=e.GOOD), e.write_own(folder))[1]),
        ("video", lambda folder: (e.write_video(folder, name=e.GOOD), e.write_video(folder))[1]),
        ("LeRobot table", e.write_pictures),
        ("LeRobot video", e.write_videos),
        ("LeRobot v3, its episodes", e.write_v3),
    ):
        table |= {f"{layout}: {name}": bytes_of(write, content) for name, content in DAMAGES.items()}
        table[f"{layout}: a pipe"] = _pipe(write)
    return table | {
        "video: 44 GB in a small archive": _huge_array,
        "video: an array alone": _array_alone,
        "video: a link to nothing": _folder,
        "LeRobot rows: pictures beside": _beside,
        "LeRobot video: as it is": e.write_videos,
        "LeRobot video: another rate": lambda folder: e.write_videos(folder, np.repeat(e.IMAGE, 3, 0), fps=30),
        "LeRobot video: too long": lambda folder: e.write_videos(folder, np.concatenate([e.IMAGE, e.IMAGE[:2]])),
        "LeRobot video: too short": lambda folder: e.write_videos(folder, e.IMAGE[:-1]),
        "LeRobot video: rows in another order": lambda folder: e.write_videos(folder, rows=_shuffled),
        "LeRobot video: times of another rate": lambda folder: e.write_videos(
            folder, rows=every("timestamp", lambda t: t / 3)
        ),
        "LeRobot video: a playlist": bytes_of(e.write_videos, PLAYLIST),
        "LeRobot video: damaged in its middle": bytes_of(
            e.write_videos, lambda content: content[:200] + bytes(200) + content[400:]
        ),
        "LeRobot: no episodes.jsonl": _without(e.write_pictures, "meta/episodes.jsonl"),
    }


# what is wrong is wrong with every episode
WHOLE_SET = ("LeRobot info:", "LeRobot v3, its episodes:", "LeRobot: ")
# must not be refused, and the warning that there must be
READ = {
    "Dreamer: as it is": "", "Dreamer: of the first version": "", "Dreamer: more observations": "vector",
    "LeRobot rows: as they are": "", "LeRobot rows: in another order": "", "LeRobot video: as it is": "",
    "LeRobot v3, an episode: as they are": "", "video: int64 frames": "aux1_image", "LeRobot rows: grey pictures": "",
    "LeRobot rows: pictures beside": "", "video: actions by another name": "actions",
    "LeRobot info: columns of relatives": "wrist_image", "LeRobot info: with a byte-order mark": "",
}  # fmt: skip
