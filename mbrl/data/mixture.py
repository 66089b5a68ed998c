"""Batches of segments drawn from a weighted mixture of folders; batch number i is always the same.

B batch, T time, R resolution, A action.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mbrl.data.augmentation import Augmentation, Parameters, augment
from mbrl.data.episodes import INITIAL
from mbrl.data.segments import EpisodeData
from mbrl.errors import UserError
from mbrl.processes.workers import end_with_parent

Split = Literal["train", "validation"]

_log = logging.getLogger(__name__)


class _Source(NamedTuple):
    """One folder: its episodes of the split that are long enough, and up to each of them the number of segments."""

    data: EpisodeData
    episodes: Tensor  # int64 [E]
    bounds: Tensor  # int64 [E], cumulative


class Mixture(Dataset[TensorDict]):
    """Item i is batch number i, [B, T]: a pure function of (folders, seed, split, i, rank).

    So a run resumes to the bit by asking for the next number, and the workers of a DataLoader cannot change a batch.
    There is no last item: see `loader`.

    A folder is drawn by its weight, then one of its segments, uniformly over all of them. An episode belongs to the
    validation split by a hash of its name within its folder, so that it stays there when episodes are added. Of the
    world_size * B rows of the joint batch, rank r has rows r * B to (r + 1) * B.

    A batch has `pixels` uint8 [B, T, 3, R, R] and what all folders have of `action` [B, T, A], `state` [B, T, S],
    ("next", "reward") [B, T, 1] and ("next", "success") [B, T, 1], as in `EpisodeData.segment`. States of different
    widths are left out.

    Args:
        folders: weight by folder; weights need not sum to 1.
        initial: whether a batch also has `initial` uint8 [B, T, 3, R, R], the first frame of each row's episode,
            augmented as its segment is.
        augment: drawn anew for each segment; None leaves frames as they are.
        validation_share: of the episodes, on average.
        strict: refuse folders with torn, empty or too short episodes, instead of leaving those out with a warning.

    Attributes:
        keys: of `action`, `reward`, `success` and `state`, those that a batch has. action_dim: A, or None.
        episodes: how many are drawn from, by folder.

    Raises:
        FileNotFoundError: a folder that does not exist or holds no episode.
        UserError: a weight is not positive, actions differ in width, or no episode of a folder is long enough or
            falls into the split.
    """

    def __init__(
        self,
        folders: Mapping[str, float],
        *,
        batch_size: int,
        segment_length: int,
        resolution: int,
        seed: int,
        initial: bool = False,
        augment: Augmentation | None = None,
        split: Split = "train",
        validation_share: float = 0.05,
        rank: int = 0,
        world_size: int = 1,
        strict: bool = False,
    ) -> None:
        _check_weights(folders)
        if not 0 <= rank < world_size:
            raise UserError(f"rank is {rank}: it must be 0 or more and less than world_size ({world_size})")
        self.batch_size, self.segment_length, self.resolution = batch_size, segment_length, resolution
        self.seed, self.split, self.rank, self.world_size = seed, split, rank, world_size
        self.augmentation, self.initial = augment, initial
        data = [EpisodeData(Path(folder), resolution=resolution, strict=strict) for folder in folders]
        self.keys, self.action_dim = _shared_keys(data)
        share = (0.0, validation_share) if split == "validation" else (validation_share, 1.0)
        self._sources = [_select(part, segment_length, split, share, strict) for part in data]
        weights = torch.tensor(list(folders.values()), dtype=torch.float64)
        self._bounds = (weights / weights.sum()).cumsum(0)[:-1]

    @property
    def episodes(self) -> dict[str, int]:
        return {str(source.data.folder): len(source.episodes) for source in self._sources}

    def __getitem__(self, index: int) -> TensorDict:
        if index < 0:
            raise IndexError(f"batches are numbered from 0: there is no number {index}")
        entropy = [self.seed, get_args(Split).index(self.split), index]
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed >> 1)
        joint = self.world_size * self.batch_size  # every rank draws for all and keeps its rows
        which, where = torch.rand(2, joint, dtype=torch.float64, generator=generator)
        rows = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        source = torch.searchsorted(self._bounds, which[rows], right=True)
        drawn = zip(source.tolist(), where[rows].tolist(), strict=True)
        segments = [self._segment(self._sources[number], place) for number, place in drawn]
        batch: TensorDict = torch.stack(segments)
        if self.augmentation is not None:
            parameters = self.augmentation.draw(joint, generator)
            _augment(batch, parameters.rows(rows))
        return batch

    def _segment(self, source: _Source, where: float) -> TensorDict:
        """The segment at `where`, in [0, 1), of all those of a folder."""
        total = int(source.bounds[-1])
        place = min(int(where * total), total - 1)
        number = int(torch.searchsorted(source.bounds, place, right=True))
        start = place - (int(source.bounds[number - 1]) if number else 0)
        episode, length = int(source.episodes[number]), self.segment_length
        return source.data.segment(episode, start, length, self.keys, initial=self.initial)


def _augment(batch: TensorDict, parameters: Parameters) -> None:
    """Augment the frames of a batch, the initial ones as those of their segments."""
    pixels = batch["pixels"]
    if INITIAL not in batch.keys():
        batch["pixels"] = augment(pixels, parameters)
        return
    together = augment(torch.cat([batch[INITIAL][:, :1], pixels], 1), parameters)
    batch[INITIAL], batch["pixels"] = together[:, :1].expand_as(pixels), together[:, 1:]


def loader(
    mixture: Mixture, start: int, stop: int, *, workers: int = 0, pin_memory: bool = False
) -> DataLoader[TensorDict]:
    """Batches number `start` to `stop` in order, made ahead of time by `workers` processes where there are any."""
    return DataLoader(
        mixture,
        batch_size=None,
        sampler=range(start, stop),
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="spawn" if workers else None,  # a forked process hangs where this one opened OpenGL
        worker_init_fn=_start_worker,
    )


def _start_worker(number: int) -> None:
    end_with_parent()


def _as_it_is(batch: TensorDict) -> TensorDict:
    """torch's own conversion takes a TensorDict for a dict, and fails."""
    return batch


def split_place(name: str) -> float:
    """A number in [0, 1) made from an episode's name: below `validation_share`, it is in the validation split."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6], "big") / 2**48


def _check_weights(folders: Mapping[str, float]) -> None:
    if not folders:
        raise UserError("a mixture needs one folder of episodes or more")
    for folder, weight in folders.items():
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"the weight of {folder} is {weight}: it must be positive")


def _shared_keys(data: list[EpisodeData]) -> tuple[tuple[str, ...], int | None]:
    """The keys that all folders have, and A."""
    keys = [key for key in data[0].keys if all(key in part.keys for part in data)]
    first = data[0].widths
    for key in list(keys):
        other = next((part for part in data if part.widths[key] != first[key]), None)
        if other is not None and key == "action":
            widths = f"{first[key]} numbers in {data[0].folder} and {other.widths[key]} in {other.folder}"
            raise UserError(f"an action has {widths}: they cannot be mixed")
        if other is not None:
            keys.remove(key)
    return tuple(keys), first["action"] if "action" in keys else None


def _select(data: EpisodeData, length: int, split: str, share: tuple[float, float], strict: bool) -> _Source:
    """The episodes of a folder whose name falls into `share` and that have `length` frames or more."""
    chosen = [i for i, name in enumerate(data.names) if share[0] <= split_place(name) < share[1]]
    long = [i for i in chosen if data.lengths[i] >= length]
    if not chosen:
        raise UserError(
            f"none of the {len(data)} episodes of {data.folder} falls into the {split} split: "
            "change validation.share, or add episodes"
        )
    if len(long) < len(chosen):
        count = f"{len(chosen) - len(long)} of {len(chosen)} {split} episodes of {data.folder}"
        if strict or not long:
            longest = max(data.lengths[i] for i in chosen)
            raise UserError(f"{count} have less than {length} frames (the longest of all has {longest})")
        _log.warning("%s have less than %d frames and are left out", count, length)
    segments = torch.tensor([data.lengths[i] - length + 1 for i in long])
    return _Source(data, torch.tensor(long), segments.cumsum(0))
