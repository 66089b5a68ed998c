"""A session on disk: episodes that `mbrl pretrain`, `mbrl predict` and demonstrations read, and videos."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.data.episodes import FLAGS, SUFFIX, write_episode
from mbrl.errors import UserError
from mbrl.play.timeline import Moment
from mbrl.run_folder.videos import side_by_side, write_video

_NAME = re.compile(r"episode-(\d{5})\.(safetensors|mp4)")


def to_records(moments: Sequence[Moment], success_bonus: float = 0.0) -> TensorDict:
    """The record episode [L + 1] (see `mbrl.data.episodes`) of L real steps.

    Args:
        moments: L + 1 of them.
        success_bonus: what their rewards contain at success, and recorded episodes do not.

    Raises:
        UserError: there is no step.
    """
    if len(moments) < 2:
        raise UserError("there is nothing to save yet: take a step first")
    taken = moments[1:]
    actions = [np.asarray(row.action, np.float32) for row in taken]
    entries = {key: torch.from_numpy(np.stack([row.real[key] for row in moments])) for key in moments[0].real}
    entries["action"] = torch.from_numpy(np.stack([*actions, np.zeros_like(actions[0])]))
    entries["reward"] = _column([row.reward - success_bonus * row.success for row in taken], torch.float32)
    for flag in FLAGS:
        entries[flag] = _column([getattr(row, flag) for row in taken], torch.bool)
    entries["truncated"][-2] = ~entries["terminated"][-2]  # The recording ends here, and with it the episode.
    return TensorDict(entries, batch_size=[len(moments)])


def _column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Values of L steps as [L + 1, 1], the last one zero."""
    return torch.tensor([*values, 0], dtype=dtype)[:, None]


class Recordings:
    """The files of `mbrl play` in a folder: episode-00000.safetensors, episode-00000.mp4, and so on.

    Args:
        folder: made when the first file is written.
        about: what an episode's file says about it, see `mbrl.data.episodes.episode_metadata`.
        success_bonus: see `to_records`.
    """

    def __init__(self, folder: Path, about: dict[str, Any], success_bonus: float = 0.0) -> None:
        self.folder, self._about, self._bonus = folder, about, success_bonus
        self._videos: set[str] = set()

    def save_episode(self, moments: Sequence[Moment]) -> Path:
        """Write the real steps of moments as an episode; returns its path."""
        records = to_records(moments, self._bonus)
        path = self._next(SUFFIX)
        write_episode(path, records, self._about)
        return path

    def save_video(self, moments: Sequence[Moment], fps: int) -> Path:
        """Write real | imagined | difference as a video of so many frames per second; returns its path."""
        path = self._next(".mp4")
        strip = [
            side_by_side(
                _picture(row.real), _picture(row.imagined), torch.tensor(row.anchor != "real" and row.depth > 0)
            )
            for row in moments
        ]
        write_video(path, torch.stack(strip), fps)
        self._videos.add(path.name)
        return path

    def video(self, name: str) -> Path | None:
        """The path of a video that was saved in this session; None for any other name."""
        return self.folder / name if name in self._videos else None

    def _next(self, suffix: str) -> Path:
        names = [path.name for path in self.folder.glob("episode-*")] if self.folder.is_dir() else []
        taken = [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]
        return self.folder / f"episode-{max(taken, default=-1) + 1:05d}{suffix}"


def _picture(observation: dict[str, Any]) -> Tensor:
    return torch.from_numpy(observation["pixels"])
