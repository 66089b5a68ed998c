"""Segments of real episodes on which a world model is measured. C context frames, H horizon, T = C + H frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.errors import UserError

STATE_WIDTH = 39  # width of Meta-World's state
GRIPPER = slice(0, 3)  # its entries with the position of the gripper in metres


@dataclass(frozen=True)
class Segments:
    """M segments of episodes.

    `action[t]` leads to frame t + 1, and `reward[t]` and `success[t]` come with it. The actions, rewards and successes
    of the H future frames are therefore in rows C - 1 to T - 2.

    Attributes:
        records: the steps, [M, T], see `mbrl.data.episodes`.
        episode: number of the episode that each segment is from, int64 [M].
        context: C.
    """

    records: TensorDict
    episode: Tensor
    context: int

    def __len__(self) -> int:
        return len(self.episode)

    def __getitem__(self, rows: slice) -> Segments:
        return Segments(self.records[rows], self.episode[rows], self.context)

    def to(self, device: torch.device) -> Segments:
        return Segments(self.records.to(device), self.episode.to(device), self.context)

    def __contains__(self, key: str) -> bool:
        return key in self.records.keys()

    def with_goal(self) -> TensorDict:
        """All steps [M, T], with the last frame of each segment as `goal`, for goal-conditioned models."""
        return self.records.copy().set("goal", self.records["pixels"][:, -1:].expand_as(self.records["pixels"]))

    def before(self) -> TensorDict:
        """The context steps [M, C], with the goal."""
        return self.with_goal()[:, : self.context]

    def after(self, key: str) -> Tensor:
        """`pixels` or `state` of the H future frames, [M, H, ...]."""
        return self.records[key][:, self.context :]

    def leading(self, key: str) -> Tensor:
        """`action`, `reward` or `success` of the H steps that lead to the future frames, [M, H, ...]."""
        return self.records[key][:, self.context - 1 : -1]


def draw_segments(episodes: Sequence[TensorDictBase], *, context: int, horizon: int, count: int, seed: int) -> Segments:
    """Draw segments uniformly, without replacement, from all positions in all episodes.

    Args:
        episodes: records [steps] of each episode.
        context: C.
        horizon: H.
        count: number of segments; fewer are drawn if there are fewer positions.
        seed: seed of the draw.

    Raises:
        UserError: No episode has T frames, or one has no pixels.
    """
    length = context + horizon
    places = torch.tensor([max(0, len(episode) - length + 1) for episode in episodes])
    ends = places.cumsum(0)
    if not ends[-1]:
        longest = max(len(episode) for episode in episodes)
        raise UserError(
            f"horizon {horizon} after {context} context frames needs {length} frames and the longest episode has "
            f"{longest}: the horizon can be at most {longest - context}"
        )
    chosen = torch.randperm(int(ends[-1]), generator=torch.Generator().manual_seed(seed))[:count]
    episode = torch.searchsorted(ends, chosen, right=True)
    starts = chosen - ends[episode] + places[episode]
    keys = set.intersection(*(set(episode.keys()) for episode in episodes))
    if "pixels" not in keys:
        raise UserError("an episode without pixels cannot be predicted: remove it, or record it with pixels")
    parts = [
        episodes[number].select(*keys)[start : start + length]
        for number, start in zip(episode.tolist(), starts.tolist(), strict=True)
    ]
    records = torch.stack(parts)
    assert isinstance(records, TensorDict)
    return Segments(records, episode, context)


def has_gripper(episodes: Sequence[TensorDictBase]) -> bool:
    """Whether all episodes have Meta-World's state, which contains the position of the gripper."""
    return all("state" in episode.keys() and episode["state"].shape[-1] == STATE_WIDTH for episode in episodes)
