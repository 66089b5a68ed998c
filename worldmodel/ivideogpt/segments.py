"""From a batch of real steps to what iVideoGPT trains on: frames in the token layout's order, and what leads there.

B batch, T real frames, C context frames of the layout (the goal among them), F future frames, A action width, P numbers
of the robot's state, R resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """One batch. What the model does not read, or the batch does not hold, is None."""

    pixels: Tensor  # uint8 [B, C + F, 3, R, R]
    actions: Tensor | None  # [B, F, A]: the ones that lead to the future frames
    rewards: Tensor | None  # [B, F, 1]: earned on arriving there, in real units
    states: tuple[Tensor, Tensor] | None  # [B, F, P]: before each future frame, and at it

    @property
    def frames(self) -> Tensor:
        """float32 in [0, 1]."""
        return self.pixels.float() / 255


@dataclass(frozen=True)
class SegmentReader:
    """What a model wants of a batch; checks it.

    Attributes:
        resolution: R. context_length: real context frames. longest: T at most, a goal not counted.
        action_dim: A; None for a model without actions. proprioception: P; 0 for none.
        goal: a goal frame stands before the context. In training it is the segment's last frame, which is not predicted
            (as published), or the last of ``goal`` uint8 [B, T, 3, R, R] where the batch has that.
        rewards_off_by_one: a published defect for study: the reward of the transition after a frame's own.
    """

    resolution: int
    context_length: int
    longest: int
    action_dim: int | None
    proprioception: int = 0
    goal: bool = False
    rewards_off_by_one: bool = False

    def __call__(self, batch: TensorDictBase) -> Segment:
        """Read a batch [B, T]; ValueError where it does not fit the model."""
        pixels, length = batch["pixels"], self.context_length
        self.check_pixels(pixels, "a batch needs pixels uint8 [B, T,")
        frames = pixels.shape[1] - self.goal
        if not length < frames <= self.longest:
            least, most, given = length + 1 + self.goal, self.longest + self.goal, pixels.shape[1]
            raise ValueError(f"sequences of {given} frames: this model trains on {least} to {most} (segment_length)")
        leading = slice(length - 1, frames - 1)
        earned = slice(length, frames) if self.rewards_off_by_one else leading
        known = batch.keys(True)
        if self.goal:
            goal = batch["goal"] if "goal" in known else pixels
            pixels = torch.cat([goal[:, -1:], pixels[:, :-1]], 1)
        rewards = batch["next", "reward"][:, earned].float() if ("next", "reward") in known else None
        states = None
        if self.proprioception:
            values = self.read_states(batch)
            states = values[:, leading], values[:, length:frames]
        return Segment(pixels, self._actions(batch, leading), rewards, states)

    def context(self, context: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """Of real steps [B, C'] the frames of the layout's context uint8 [B, C, 3, R, R] and the last states [B, P].

        A goal-conditioned model needs ``goal`` uint8 [B, C', 3, R, R] beside ``pixels`` (its last row is used).
        """
        pixels = context["pixels"]
        self.check_pixels(pixels, f"a context needs pixels uint8 [B, {self.context_length},", self.context_length)
        if self.goal:
            if "goal" not in context.keys():
                raise ValueError("this model is conditioned on a goal: give it as `goal` uint8 beside the pixels")
            pixels = torch.cat([context["goal"][:, -1:], pixels], 1)
        return pixels, self.read_states(context)[:, -1] if self.proprioception else None

    def check_pixels(self, pixels: Tensor, wanted: str, frames: int | None = None) -> None:
        """ValueError where pixels are not uint8 [B, T, 3, R, R] (of ``frames`` frames)."""
        side = self.resolution
        right = pixels.dtype == torch.uint8 and pixels.dim() == 5 and tuple(pixels.shape[2:]) == (3, side, side)
        if not right or frames not in (None, pixels.shape[1]):
            raise ValueError(f"{wanted} 3, {side}, {side}], not {pixels.dtype} {list(pixels.shape)}")

    def read_states(self, batch: TensorDictBase) -> Tensor:
        """The first P numbers of ``state``, float32 [B, T, P]."""
        if "state" not in batch.keys() or batch["state"].shape[-1] < self.proprioception:
            raise ValueError(f"this model reads {self.proprioception} numbers of `state`: the data hold fewer or none")
        return batch["state"][..., : self.proprioception].float()

    def _actions(self, batch: TensorDictBase, leading: slice) -> Tensor | None:
        if self.action_dim is None:
            return None
        if "action" not in batch.keys():
            raise ValueError(f"this model is conditioned on actions of width {self.action_dim}: the data hold none")
        width = batch["action"].shape[-1]
        if width != self.action_dim:
            raise ValueError(f"actions have width {width}, the model was built for {self.action_dim}")
        return batch["action"][:, leading].float()
