"""Episodes of other people's layouts, decoded once: from then on they are read like our own, a slice at a time.

A decoded episode is a safetensors file with `pixels` uint8 [T, 3, R, R] and those of `action`, `reward`, `success` and
`state` that it has, aligned as in a record episode (see `mbrl.data.episodes`). It lies in $XDG_CACHE_HOME/mbrl/episodes
(~/.cache where that is not set) under a name made from the files it came from and from how they are read, so that it is
decoded anew where these change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from mbrl.data.episodes import SUFFIX, write_entries
from mbrl.data.frames import crop_and_resize
from mbrl.data.reading import reading
from mbrl.errors import UserError
from mbrl.processes.usage import usable_cores
from mbrl.run_folder.files import remove_leftovers

_VERSION = 2  # of what a decoded episode holds: raise it where that changes
SHOW_AFTER = 2.0  # seconds: a progress bar only over what takes longer


class ExternalEpisode(NamedTuple):
    """An episode that is not one of our own files.

    Attributes:
        name: its name in the folder.
        files: the files that it is read from, the first of which stands for it in messages.
        read: called with R; returns the entries of the decoded episode, with frames of any size. Raises UserError if
            the episode is torn.
        described: what else decides its entries, such as which camera of a table is read.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[int | None], dict[str, Tensor]]
    described: str = ""


def cache_folder() -> Path:
    """Where decoded episodes lie.

    Raises:
        UserError: the system does not say where this user's files belong.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "mbrl" / "episodes"
    except RuntimeError as error:
        raise UserError(
            "there is no home folder to keep decoded episodes in: set XDG_CACHE_HOME=FOLDER to a folder of yours"
        ) from error


def convert(episodes: Sequence[ExternalEpisode], resolution: int | None, title: str) -> list[Path | UserError]:
    """Decode what is not decoded yet, on all cores; the decoded files, or why there is none."""
    cache = cache_folder()

    def one(episode: ExternalEpisode) -> Path | UserError:
        try:
            path = _decoded(cache, episode, resolution)
            if not _is_whole(path):
                remove_leftovers(path.parent)
                entries = _read(episode, resolution)
                write_entries(path, entries)
        except UserError as error:
            return error
        return path

    pool = ThreadPoolExecutor(usable_cores())
    try:
        jobs = pool.map(one, episodes)
        return list(tqdm(jobs, total=len(episodes), desc=f"decoding {title}", unit="episode", delay=SHOW_AFTER))
    finally:
        pool.shutdown(cancel_futures=True)  # on an interrupt or a full disk, stop here: what is decoded is kept


def _read(episode: ExternalEpisode, resolution: int | None) -> dict[str, Tensor]:
    """The entries of an episode, whatever is wrong with which is one UserError."""
    if not episode.files:  # it is described so that there is nothing to read
        return episode.read(resolution)
    with reading(episode.files[0]):
        entries = episode.read(resolution)
        return entries | {"pixels": crop_and_resize(entries["pixels"], resolution)}


def _is_whole(path: Path) -> bool:
    """Whether there is a decoded episode that nothing has cut since."""
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _decoded(cache: Path, episode: ExternalEpisode, resolution: int | None) -> Path:
    parts = [str(_VERSION), str(resolution), episode.name, *([episode.described] if episode.described else [])]
    for file in episode.files:
        if not file.is_file():
            raise UserError(f"{file}: there is no such file")
        stat = file.stat()
        parts += [str(file.resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    key = hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()
    return cache / key[:2] / f"{key[2:40]}{SUFFIX}"
