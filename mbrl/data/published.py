"""Episodes in .npz files, of which there are three layouts, recognised by their keys.

iVideoGPT's, for pretraining: image uint8 [T, H, W, 3] (int64 in its BAIR files); action float [T, A] or [T - 1, A]
where there are actions, action[k] leading from frame k to frame k + 1.

Dreamer's (V1, V2 and their PyTorch relatives): image uint8 [T, H, W, 3], action float [T, A], reward [T], and any of
is_first, is_last, is_terminal, discount. action[k] led to frame k and earned reward[k]; those of the first frame are 0.

Demonstrations (thuml/iVideoGPT, from DrQ-v2): observation uint8 [L + 1, 3K, R, R], a stack of K pictures whose last
is the newest, mirrored (MuJoCo's rows flipped only); action float32 [L + 1, A], unclipped, action[k] having
led to observation[k] and action[0] a placeholder; reward [L + 1, 1] alike, summed over an action repeat of 2,
with 10 added where the task was solved; discount [L + 1, 1]. Success is not stored: it is inferred from the
bonus.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.data.archives import Archive, open_archive
from mbrl.data.reading import Malformed
from mbrl.data.values import actions, column, flags, frames, numbers

SUCCESS_BONUS = 10.0
MAX_REWARD = 20.0  # of one agent step without the bonus: 2 env steps of at most 10
_JUMP = 8.0  # a rise of the reward by this much in one step is the bonus setting in
_EPISODE_ENDS = ("is_first", "is_last", "is_terminal", "discount")  # a Dreamer's, which say where episodes end
# what belongs to a time convention: a file with one of these is of no layout that does not name it
_OF_TIME = {
    "reward", "rewards", "observation", "observations", "next_observation", "next_observations", "obs", "next_obs",
    "terminal", "terminals", "done", "dones", "terminated", "truncated", "timeout", "timeouts", "reset", "step_type",
    *_EPISODE_ENDS,
}  # fmt: skip


class Layout(NamedTuple):
    """A layout of .npz files.

    Attributes:
        name: for messages.
        needs: keys that a file has.
        marks: keys of which a file has one or more; empty for no such condition.
        understood: keys that it may have besides.
        read: the entries of an archive, as in a record episode, frames of any size.
    """

    name: str
    needs: tuple[str, ...]
    marks: tuple[str, ...]
    understood: tuple[str, ...]
    read: Callable[[Archive], dict[str, Tensor]]

    @property
    def keys(self) -> set[str]:
        return {*self.needs, *self.marks, *self.understood}

    def admits(self, keys: Collection[str]) -> bool:
        """Whether a file of these keys is of this layout."""
        marked = not self.marks or not set(self.marks).isdisjoint(keys)
        return set(self.needs) <= set(keys) and marked and (_OF_TIME - self.keys).isdisjoint(keys)

    def __str__(self) -> str:
        marks = f" and one of {', '.join(self.marks)}" if self.marks else ""
        return f"{self.name} ({', '.join(self.needs)}{marks})"


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read one episode of any layout: pixels uint8 [T, 3, H, W], and its other entries as in a record episode.

    Raises:
        UserError: the file is torn, has another layout, or holds NaN.
    """
    with open_archive(path) as archive:
        return _layout(archive).read(archive)


def unread_keys(path: Path) -> tuple[str, list[str]]:
    """The name of an .npz file's layout, and the keys that it has beside those of its layout.

    Raises:
        UserError: the file is torn or has another layout.
    """
    with open_archive(path) as archive:
        layout = _layout(archive)
        return layout.name, [key for key in archive.keys if key not in layout.keys]


def _layout(archive: Archive) -> Layout:
    layout = next((one for one in LAYOUTS if one.admits(archive.keys)), None)
    if layout is None:
        known = "; ".join(map(str, LAYOUTS))
        raise Malformed(f"of no layout that is read: its keys are {_listed(archive.keys)}; those read are {known}")
    return layout


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "") if keys else "none"


def _read_video(archive: Archive) -> dict[str, Tensor]:
    pixels = frames(archive["image"], "image")
    if "action" not in archive.keys:
        return {"pixels": pixels}
    action = actions(archive["action"], "action", (len(pixels), len(pixels) - 1))
    padded = np.zeros((len(pixels), action.shape[1]), np.float32)
    padded[: len(action)] = action
    return {"pixels": pixels, "action": torch.from_numpy(padded)}


def _read_dreamer(archive: Archive) -> dict[str, Tensor]:
    pixels = frames(archive["image"], "image")
    length = len(pixels)
    action = actions(archive["action"], "action", (length,))
    if action[0].any():
        raise Malformed("its first action is not 0, so that it did not lead to the first frame as in Dreamer's files")
    for key in {"is_first", "is_last"} & set(archive.keys):
        set_at = np.flatnonzero(flags(column(archive[key], key, length), key))
        if set(set_at) - {0 if key == "is_first" else length - 1}:
            raise Malformed(f"it holds several episodes: {key} is set in row {set_at[-1 if key == 'is_first' else 0]}")
    entries = {"pixels": pixels, "action": _shift(action)}
    if "reward" in archive.keys:
        reward = numbers(column(archive["reward"], "reward", length), "reward")
        if reward[0].any():
            raise Malformed("its first reward is not 0, so that no action before the first frame earned it")
        entries["reward"] = _shift(reward)
    return entries


def _read_demonstration(archive: Archive) -> dict[str, Tensor]:
    return {key: value for key, value in demonstration(archive).items() if key in _KEPT}


def read_published(path: Path) -> TensorDict:
    """Read one published demonstration as a record episode [L + 1] (see `mbrl.data.episodes`).

    Raises:
        UserError: the file is torn, has another layout, or holds NaN.
    """
    with open_archive(path) as archive:
        if not DEMONSTRATIONS.admits(archive.keys):
            raise Malformed(f"its keys are {_listed(archive.keys)}, not those of {DEMONSTRATIONS}")
        return demonstration(archive)


def demonstration(archive: Archive) -> TensorDict:
    """The record episode of a published demonstration, its mirrored pictures turned the right way up."""
    stack, action, reward = archive["observation"], archive["action"], archive["reward"]
    rows = len(stack) if stack.ndim else 0
    pictures = stack.ndim == 4 and stack.shape[1] % 3 == 0 and stack.shape[2] == stack.shape[3] and 0 not in stack.shape
    if not pictures or stack.dtype != np.uint8 or rows < 2:
        raise Malformed(f"observation cannot be {stack.dtype} {list(stack.shape)} in a published demonstration")
    action = actions(action, "action", (rows,))
    earned = numbers(column(reward, "reward", rows), "reward").reshape(-1)
    success = infer_success(earned[1:])
    records = TensorDict(
        {
            "pixels": torch.from_numpy(np.ascontiguousarray(stack[:, -3:, :, ::-1])),
            "action": _shift(action.clip(-1.0, 1.0)),
            "reward": _shift((earned - SUCCESS_BONUS * np.append(False, success))[:, None]),
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


def _shift(values: npt.NDArray[Any]) -> torch.Tensor:
    """From "led to row k" to "taken at row t"; zeros in the last row."""
    rolled = np.zeros_like(values)
    rolled[:-1] = values[1:]
    return torch.from_numpy(rolled if rolled.dtype == bool else rolled.astype(np.float32))


_KEPT = ("pixels", "action", "reward", "success")
DEMONSTRATIONS = Layout(
    "demonstrations of iVideoGPT", ("observation", "action", "reward"), (), ("discount",), _read_demonstration
)
VIDEOS = Layout("videos of iVideoGPT", ("image",), (), ("action",), _read_video)
DREAMER = Layout("episodes of Dreamer", ("image", "action"), _EPISODE_ENDS, ("reward",), _read_dreamer)
LAYOUTS = (DEMONSTRATIONS, VIDEOS, DREAMER)
