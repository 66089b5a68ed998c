"""A folder of episodes, of which segments are read without reading the rest.

It may hold, at any depth, our own .safetensors episodes (see `mbrl.data.episodes`) and .npz episodes as iVideoGPT's
authors published them (see `mbrl.data.published`); or it is a LeRobot data set (see `mbrl.data.lerobot`). Other layouts
than our own are decoded once, see `mbrl.data.conversion`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from tensordict import TensorDict
from torch import Tensor
from tqdm import tqdm

from mbrl.data.conversion import SHOW_AFTER, ExternalEpisode, convert
from mbrl.data.episodes import INITIAL, SUFFIX
from mbrl.data.frames import crop_and_resize
from mbrl.data.lerobot import is_lerobot, lerobot_episodes
from mbrl.data.published import read_npz, unread_keys
from mbrl.data.reading import reading
from mbrl.errors import UserError
from mbrl.run_folder.files import walk

KEYS = ("action", "reward", "success", "state")  # what an episode may have beside its pixels
_EARNED = ("reward", "success")  # these stand under "next" in a segment

_log = logging.getLogger(__name__)


class _Header(NamedTuple):
    length: int
    side: int  # pixels, as stored
    widths: dict[str, int]  # of each of KEYS that is there


class EpisodeData:
    """Segments of the episodes of one folder.

    Args:
        folder: the folder.
        resolution: R; frames of another size are cropped to their central square and resized. None keeps that square.
        strict: whether the first bad episode raises: torn, empty, or shorter than 2 frames. Otherwise bad episodes are
            left out and counted in one warning.

    Attributes:
        names: names of the episodes in the folder, without suffix, in order.
        lengths: number of frames of each.
        smallest: side of the smallest stored frames, in pixels.
        keys: those of `action`, `reward`, `success` and `state` that every episode has.
        widths: width of each of these keys.

    Raises:
        FileNotFoundError: the folder does not exist or holds no good episode.
        UserError: the actions (or states) of two episodes differ in width; or an episode is bad and `strict` is true.
    """

    def __init__(self, folder: Path, *, resolution: int | None = None, strict: bool = False) -> None:
        self.folder, self.resolution = Path(folder), resolution
        found = _find(self.folder, resolution)
        good: list[tuple[str, Path, _Header]] = []
        bad: list[UserError] = []
        for episode in tqdm(found, desc=f"indexing {folder}", unit="episode", delay=SHOW_AFTER, leave=False):
            try:
                if isinstance(episode.file, UserError):
                    raise episode.file
                good.append((episode.name, episode.file, _read_header(episode.file, episode.source)))
            except UserError as error:
                if strict:
                    raise
                bad.append(error)
        if not good:
            raise FileNotFoundError(f"{folder}: none of its {len(found)} episodes can be read, the first: {bad[0]}")
        if bad:
            _log.warning("left out %d of %d episodes in %s, the first: %s", len(bad), len(found), folder, bad[0])
        self.names = [name for name, _, _ in good]
        self.lengths = [header.length for _, _, header in good]
        self.smallest = min(header.side for _, _, header in good)
        self._files = [file for _, file, _ in good]
        self.keys, self.widths = _common_keys(self.folder, [header for _, _, header in good])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def action_dim(self) -> int | None:
        """A, or None where there are no actions."""
        return self.widths.get("action")

    def segment(
        self, episode: int, start: int, length: int, keys: Sequence[str] | None = None, *, initial: bool = False
    ) -> TensorDict:
        """Rows `start` to `start + length` of an episode, [T]; of `keys` alone, where they are given.

        `pixels` uint8 [T, 3, R, R], and where the folder has them `action` [T, A], `state` [T, S], ("next", "reward")
        [T, 1] and ("next", "success") [T, 1]. action[t] leads to frame t + 1 and earns ("next", "reward")[t]; the last
        row's are not to be used. With `initial` the episode's first frame stands beside each row, as `initial`
        uint8 [T, 3, R, R].
        """
        if start < 0 or length < 1 or start + length > self.lengths[episode]:
            last = start + length
            raise UserError(f"{self.names[episode]} has {self.lengths[episode]} frames: not {start} to {last}")
        rows, keys = slice(start, start + length), self.keys if keys is None else keys
        with _open(self._files[episode]) as file:
            entries = {key: file.get_slice(key)[rows] for key in ("pixels", *keys)}
            first = file.get_slice("pixels")[:1] if initial else None
        segment = TensorDict({"pixels": crop_and_resize(entries.pop("pixels"), self.resolution)}, batch_size=[length])
        for key, value in entries.items():
            segment.set(("next", key) if key in _EARNED else key, value)
        if first is not None:
            segment[INITIAL] = crop_and_resize(first, self.resolution).expand_as(segment["pixels"])
        return segment


class _Found(NamedTuple):
    """An episode: its name, the file that it comes from, and the file in our own layout or why there is none."""

    name: str
    source: Path
    file: Path | UserError


def _find(folder: Path, resolution: int | None) -> list[_Found]:
    """Every episode, in the order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist, or is no folder")
    own: list[_Found] = []
    if is_lerobot(folder):
        foreign = lerobot_episodes(folder)
    else:
        paths = [place / name for place, _, files in walk(folder) for name in files]
        own = [_Found(_name(folder, path), path, path) for path in paths if path.suffix == SUFFIX]
        archives = [path for path in paths if path.suffix == ".npz"]
        foreign = [ExternalEpisode(_name(folder, path), (path,), partial(_read_npz, path)) for path in archives]
    if not own and not foreign:
        raise FileNotFoundError(f"{folder} holds no episodes (.safetensors, .npz, or a LeRobot data set)")
    decoded = convert(foreign, resolution, str(folder))
    found = [
        _Found(episode.name, episode.files[0] if episode.files else folder, file)
        for episode, file in zip(foreign, decoded, strict=True)
    ]
    _tell_unread(folder, [one.source for one in found if one.source.suffix == ".npz" and isinstance(one.file, Path)])
    return sorted(own + found, key=lambda episode: episode.name)


def _tell_unread(folder: Path, archives: list[Path]) -> None:
    """Warn of what .npz files hold beside what is read."""
    unread = {(layout, key) for layout, keys in map(unread_keys, archives) for key in keys}
    for layout in sorted({layout for layout, _ in unread}):
        names = ", ".join(sorted(key for one, key in unread if one == layout))
        _log.warning("%s: files are read as %s; not read: %s", folder, layout, names)


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _read_npz(path: Path, resolution: int | None) -> dict[str, Tensor]:
    entries = read_npz(path)
    return {key: entries[key] for key in ("pixels", *KEYS) if key in entries}


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    with reading(path), safe_open(path, "pt") as file:
        yield file


def _read_header(path: Path, name: Path) -> _Header:
    """Length, size and widths of an episode, for the index.

    Args:
        path: the file in our own layout. name: the file that it was decoded from, for the error message.

    Raises:
        UserError: the file is no episode with pixels and 2 frames or more, or holds NaN.
    """
    with _open(path) as file:
        present = set(file.keys())
        if "pixels" not in present:
            raise UserError(f"{name}: no episode with pixels")
        pixels = file.get_slice("pixels")
        shape = pixels.get_shape()
        square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0
        if pixels.get_dtype() != "U8" or not square:
            raise UserError(f"{name}: pixels cannot be {pixels.get_dtype()} {shape} in an episode")
        if shape[0] < 2:
            raise UserError(f"{name}: an episode has 2 frames or more, not {shape[0]}")
        entries = {key: file.get_tensor(key) for key in KEYS if key in present}
    for key, value in entries.items():
        wide = value.ndim == 2 and len(value) == shape[0] and value.shape[1] > 0
        dtype = torch.bool if key == "success" else torch.float32
        if not wide or value.dtype != dtype or (key in _EARNED and value.shape[1] != 1):
            found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            raise UserError(f"{name}: {key} cannot be {found} beside {shape[0]} frames")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{name}: {key} holds NaN or infinite values")
    return _Header(shape[0], shape[2], {key: value.shape[1] for key, value in entries.items()})


def _common_keys(folder: Path, headers: list[_Header]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The keys that every episode has, and their widths."""
    keys = tuple(key for key in KEYS if all(key in header.widths for header in headers))
    for key in keys:
        widths = sorted({header.widths[key] for header in headers})
        if len(widths) > 1:
            raise UserError(f"{folder}: {key} has {' and '.join(map(str, widths))} numbers in different episodes")
    return keys, {key: headers[0].widths[key] for key in keys}
