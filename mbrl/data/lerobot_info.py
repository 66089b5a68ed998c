"""meta/info.json of a LeRobot data set: which columns are read, and where each episode's files lie."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mbrl.data.reading import Malformed, reading
from mbrl.errors import UserError
from mbrl.run_folder.plain_json import parse_json

Row = Mapping[str, Any]  # what the data set says of one episode

# of an entry, the column that holds it, as LeRobot and as its relatives (openpi, Octo) name it
_COLUMNS = {
    "action": ("action", "actions"),
    "state": ("observation.state", "state"),
    "reward": ("next.reward",),
    "success": ("next.success",),
}
# what says where a row belongs, and what stands in every data set and is no entry of an episode
_UNDERSTOOD = {"timestamp", "frame_index", "episode_index", "index", "task_index", "next.done"}
_CAMERA_TYPES = ("video", "image")
_MAX_WIDTH = 2  # digits of a number's width in a path
_BEGIN_TOLERANCE = 0.25  # frames


class Place(NamedTuple):
    """Where one episode lies. `video` is None where the frames lie in the parquet file; `begin` in seconds."""

    number: int
    length: int
    data: Path
    video: Path | None
    begin: float

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.data,) if self.video is None else (self.data, self.video)


@dataclass(frozen=True)
class Info:
    """The description of a data set.

    Attributes:
        folder: of the data set.
        major: 2 or 3, of the layout's version.
        fps: frames per second.
        camera: the column of pictures that is read.
        in_video: whether its pictures lie in videos.
        columns: by entry (action, state, reward, success), the column that is read.
        unread: columns that are not read.
        data_path, video_path: templates; the second is empty where there is no video.
        chunk: episodes of a folder; v2 alone.
    """

    folder: Path
    major: int
    fps: float
    camera: str
    in_video: bool
    columns: dict[str, str]
    unread: list[str]
    data_path: str
    video_path: str
    chunk: int

    @property
    def place_columns(self) -> list[str]:
        """The columns of meta/episodes that `locate` needs; v3 alone."""
        names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        video = [f"videos/{self.camera}/{name}" for name in names]
        return ["episode_index", "length", "data/chunk_index", "data/file_index", *(video if self.in_video else ())]

    def locate(self, row: Row) -> Place:
        """Where an episode lies.

        Raises:
            UserError: its description is incomplete, or names a file outside the data set.
        """
        try:
            number, length = _count(row, "episode_index", 0), _count(row, "length", 1)
            where, video, begin = {"episode_index": number}, {}, 0.0
            if self.major == 2:
                where["episode_chunk"] = number // self.chunk
                video = {**where, "video_key": self.camera}
            else:
                where = {name: _count(row, f"data/{name}", 0) for name in ("chunk_index", "file_index")}
                if self.in_video:
                    prefix = f"videos/{self.camera}/"
                    video = {name: _count(row, prefix + name, 0) for name in ("chunk_index", "file_index")}
                    video["video_key"] = self.camera
                    begin = self._begin(row, prefix, length)
            data = self._file(self.data_path, where)
            return Place(number, length, data, self._file(self.video_path, video) if self.in_video else None, begin)
        except (Malformed, ValueError) as error:  # a template that does not fit its numbers is a ValueError
            raise UserError(f"{self.folder}: the description of an episode {error}") from error

    def _begin(self, row: Row, prefix: str, length: int) -> float:
        begin, end = _number(row, f"{prefix}from_timestamp"), _number(row, f"{prefix}to_timestamp")
        if begin < 0 or abs(begin * self.fps - round(begin * self.fps)) > _BEGIN_TOLERANCE:
            raise Malformed(f"says that it begins at {begin:g} s, where no frame of {self.fps:g} frames/s is")
        if abs((end - begin) * self.fps - length) > 1:
            raise Malformed(f"gives it {length} frames of {self.fps:g} frames/s from {begin:g} to {end:g} s")
        return begin

    def pictures(self, place: Place) -> list[Path]:
        """The pictures in an episode's usual folder of them, where its frames lie in no video."""
        folder = self.folder / self._images(place)
        return [] if self.in_video else sorted(path for path in folder.glob("*") if path.is_file())

    def _images(self, place: Place) -> str:
        return f"images/{self.camera}/episode_{place.number:06d}"

    def beside(self, path: str, place: Place, name: str) -> Path:
        """The file of a picture that a table names.

        Raises:
            Malformed: there is none.
        """
        images = self._images(place)
        for candidate in (path, f"{images}/{path}", f"{images}/{Path(path).name}"):
            file = self.folder / candidate
            if not _is_outside(candidate) and file.is_file():
                return file
        raise Malformed(f"{name} is neither stored in it nor in the file {path!r}, which is not there")

    def _file(self, template: str, where: Mapping[str, Any]) -> Path:
        path = template.format(**{key: where[key] for key in _fields(template, where)})
        if _is_outside(path):
            raise Malformed(f"names {path!r}, which lies outside of the data set")
        return self.folder / path


def read_info(folder: Path) -> Info:
    """Read meta/info.json.

    Raises:
        UserError: it is torn or of another layout.
    """
    path = folder / "meta" / "info.json"
    try:
        with reading(path):
            info = _description(path)
    except UserError as error:
        raise UserError(f"{folder} is no LeRobot data set that can be read: {error}") from error
    version, features = info["codebase_version"], info["features"]
    types = {name: feature["dtype"] for name, feature in features.items()}
    cameras = [name for name, kind in types.items() if kind in _CAMERA_TYPES and not _is_depth(features[name])]
    major = version.removeprefix("v").split(".")[0]
    if major not in ("2", "3"):
        raise UserError(f"{path}: layout {version} cannot be read, only v2.x and v3.0")
    if not cameras:
        raise UserError(f"{path}: no feature of dtype video or image")
    camera = cameras[0]
    found = {key: next((name for name in names if name in types), None) for key, names in _COLUMNS.items()}
    columns = {key: name for key, name in found.items() if name is not None}
    unread = [name for name in types if name not in (camera, *columns.values(), *_UNDERSTOOD)]
    try:
        fps = _number(info, "fps")
        if fps <= 0:
            raise Malformed(f"has fps {fps:g}")
        in_video = types[camera] == "video"
        video_path = _text(info, "video_path") if in_video else ""
        chunk = _count(info, "chunks_size", 1) if major == "2" else 0
        return Info(
            folder, int(major), fps, camera, in_video, columns, unread, _text(info, "data_path"), video_path, chunk
        )
    except Malformed as error:
        raise UserError(f"{folder} is no LeRobot data set that can be read: {path.name} {error}") from error


def _description(path: Path) -> dict[str, Any]:
    """The object in the file, whose features are objects by name."""
    try:
        info = parse_json(path.read_bytes())
    except ValueError as error:
        raise Malformed(f"no JSON ({error})") from error
    if not isinstance(info, dict):
        raise Malformed("holds no object")
    _text(info, "codebase_version")
    features = info.get("features")
    if not isinstance(features, dict):
        raise Malformed(f"has features {features!r:.60}, not an object")
    for name, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise Malformed(f"has no dtype of the feature {name!r:.60}")
    return info


def _is_depth(feature: Row) -> bool:
    details = feature.get("info")
    return isinstance(details, dict) and any(value for name, value in details.items() if name.endswith("is_depth_map"))


def _is_outside(path: str) -> bool:
    return Path(path).is_absolute() or ".." in Path(path).parts


def _fields(template: str, known: Mapping[str, Any]) -> list[str]:
    """The names that a template fills in: of `known` alone, each as a number of a few digits at most."""
    names: list[str] = []
    for _, name, width, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if name not in known or conversion or len((width or "").strip("0d")) > _MAX_WIDTH:
            raise Malformed(f"has paths of the form {template!r}, which is not known")
        names.append(name)
    return names


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise Malformed(f"has {key} {value!r}, not a text")
    return value


def _count(row: Row, key: str, least: int) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Malformed(f"has {key} {value!r}, not a whole number from {least} on")
    return value


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise Malformed(f"has {key} {value!r}, not a number")
    return float(value)
