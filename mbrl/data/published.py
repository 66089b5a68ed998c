"""Episodes as iVideoGPT's authors published them: readers of their .npz files, of which there are two layouts.

Pretraining: image uint8 [T, H, W, 3]; action float [T, A] or [T - 1, A] where there are actions, action[k] leading
from frame k to frame k + 1.

Demonstrations (thuml/iVideoGPT, from DrQ-v2): observation uint8 [L + 1, 3K, R, R], a stack of K pictures whose last
is the newest, mirrored (MuJoCo's rows flipped only); action float32 [L + 1, A], unclipped, action[k] having
led to observation[k] and action[0] a placeholder; reward [L + 1, 1] alike, summed over an action repeat of 2,
with 10 added where the task was solved; discount [L + 1, 1]. Success is not stored: it is inferred from the
bonus.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from mbrl.errors import UserError

SUCCESS_BONUS = 10.0
MAX_REWARD = 20.0  # of one agent step without the bonus: 2 env steps of at most 10
_JUMP = 8.0  # a rise of the reward by this much in one step is the bonus setting in
_ENTRIES = ("observation", "action", "reward", "discount")


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    """Read one episode of either layout: pixels uint8 [T, 3, H, W], and its other entries as in a record episode.

    Raises:
        UserError: the file is torn, has another layout, or holds NaN.
    """
    with _open(path) as archive:
        video = "image" in archive.files
    if not video:
        return dict(read_published(path).items())
    entries = _load(path, ("image",), ("action",))
    image, action = entries["image"], entries.get("action")
    if image.ndim != 4 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise UserError(f"{path}: image cannot be {image.dtype} {list(image.shape)} in an episode")
    records = {"pixels": torch.from_numpy(image).permute(0, 3, 1, 2)}
    if action is None:
        return records
    if action.ndim != 2 or len(action) not in (len(image), len(image) - 1):
        raise UserError(f"{path}: {len(image)} frames cannot have action {list(action.shape)}")
    if not np.isfinite(action).all():
        raise UserError(f"{path}: action holds NaN or infinite values")
    padded = np.zeros((len(image), action.shape[1]), np.float32)
    padded[: len(action)] = action
    return records | {"action": torch.from_numpy(padded)}


def read_published(path: Path, *, upright: bool = True) -> TensorDict:
    """Read one published demonstration as a record episode [L + 1] (see `mbrl.data.episodes`).

    Args:
        upright: turn the mirrored pictures the right way up; False keeps the published orientation.

    Raises:
        UserError: the file is torn, has another layout, or holds NaN.
    """
    entries = _load(path, _ENTRIES[:3], _ENTRIES[3:])
    stack, action, reward = entries["observation"], entries["action"], entries["reward"].reshape(-1)
    rows = len(stack)
    pictures = stack.ndim == 4 and stack.shape[1] % 3 == 0 and stack.shape[2] == stack.shape[3]
    pictures = pictures and stack.dtype == np.uint8
    if not pictures or rows < 2 or action.ndim != 2 or len(action) != rows or len(reward) != rows:
        shapes = ", ".join(f"{key} {value.dtype} {value.shape}" for key, value in entries.items())
        raise UserError(f"{path}: not the published layout ({shapes})")
    if not (np.isfinite(action).all() and np.isfinite(reward).all()):
        raise UserError(f"{path}: action or reward holds NaN or infinite values")
    pixels = stack[:, -3:, :, ::-1] if upright else stack[:, -3:]
    success = infer_success(reward[1:])
    records = TensorDict(
        {
            "pixels": torch.from_numpy(np.ascontiguousarray(pixels)),
            "action": _shift(action.clip(-1.0, 1.0)),
            "reward": _shift((reward - SUCCESS_BONUS * np.append(False, success))[:, None]),
            "success": _shift(np.append(False, success)[:, None]),
            "terminated": torch.zeros(rows, 1, dtype=torch.bool),
            "truncated": torch.zeros(rows, 1, dtype=torch.bool),
        },
        batch_size=[rows],
    )
    records["truncated"][-2] = True
    return records


def infer_success(reward: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Where a reward [L] holds the bonus.

    Above 20 it must, below 10 it cannot. Between, it goes on as it was before, unless the reward just leapt.
    """
    success = np.zeros(len(reward), bool)
    for t, value in enumerate(reward):
        before = t > 0 and success[t - 1]
        leapt = t > 0 and value - reward[t - 1] > _JUMP
        success[t] = value > MAX_REWARD or (value >= SUCCESS_BONUS and (before or leapt))
    return success


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {error}") from error


def _load(path: Path, needed: Sequence[str], optional: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    with _open(path) as archive:
        missing = [key for key in needed if key not in archive.files]
        if missing:
            raise UserError(f"not the published layout, it lacks {', '.join(missing)}")
        return {key: archive[key] for key in (*needed, *optional) if key in archive.files}


def _shift(values: npt.NDArray[Any]) -> torch.Tensor:
    """From "led to row k" to "taken at row t"; zeros in the last row."""
    rolled = np.zeros_like(values)
    rolled[:-1] = values[1:]
    return torch.from_numpy(rolled if rolled.dtype == bool else rolled.astype(np.float32))
