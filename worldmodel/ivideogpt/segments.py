"""From a batch of real steps to training data: frames in the order of the token layout, actions, rewards, states.

Dimensions: B batch, T real frames, C context frames of the layout (with the goal), F future frames, A action width,
P width of the robot's state, R resolution.
"""

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Inputs that condition the predictions besides the context frames.

    Args:
        actions: Whether the model reads actions.
        goal: Whether a goal frame precedes the context. It takes one of the context frames of the tokenizer.
        initial: Whether the context is the initial frame of the episode, in each of the tokenizer's context frames. All
            other frames are then dynamics tokens, the real ones before a rollout too, so that a frame has the same
            tokens wherever a segment begins, imagined or real. `start` and `update` need `initial`, see SegmentReader.

    Raises:
        ValueError: Both a goal and an initial frame.
    """

    actions: bool = True
    goal: bool = False
    initial: bool = False

    def __post_init__(self) -> None:
        if self.goal and self.initial:
            raise ValueError("conditioning: goal and initial both take the place of the context, so set one of them")


ACTIONS = Conditioning()
HISTORY = 3  # real steps that `start` needs if the context is the initial frame; of the first only the action is read


@dataclass(frozen=True)
class Segment:
    """One batch.

    Attributes:
        pixels: uint8 [B, C + F, 3, R, R].
        actions: [B, F, A] that lead to the future frames. None for a model without actions.
        rewards: [B, F, 1] of the transitions to the future frames, in real units. None where the batch has none.
        terminated: bool [B, F, 1], whether these transitions terminated the episode. None where the batch has none.
        states: The robot's states [B, F, P] before each future frame and at it. None without proprioception.
    """

    pixels: Tensor
    actions: Tensor | None
    rewards: Tensor | None
    terminated: Tensor | None
    states: tuple[Tensor, Tensor] | None

    @property
    def frames(self) -> Tensor:
        """The frames, float32 in [0, 1]."""
        return self.pixels.float() / 255


@dataclass(frozen=True)
class SegmentReader:
    """Reads and checks the batches of a model.

    Args:
        resolution: R.
        context_length: Real steps from which a rollout starts: the context frames of the layout without the goal; with
            an initial frame HISTORY.
        longest: Maximum of T, without a goal.
        action_dim: A. None for a model without actions.
        proprioception: P. 0: none.
        goal: Whether a goal frame precedes the context. In training it is the last frame of the segment, which is then
            not predicted (as published), or the last of `goal` uint8 [B, T, 3, R, R] where the batch has that.
        rewards_off_by_one: Read the reward of the transition after a frame's own. See PublishedDefects.
        initial: Context frames of the layout, each of them the initial frame of the episode, the first of `initial`
            uint8 [B, T, 3, R, R]. All frames of a batch but the first are then future frames. 0: the context is the
            newest frames.
    """

    resolution: int
    context_length: int
    longest: int
    action_dim: int | None
    proprioception: int = 0
    goal: bool = False
    rewards_off_by_one: bool = False
    initial: int = 0

    @property
    def futures(self) -> int:
        """Future frames of the longest segment."""
        return self.longest - (1 if self.initial else self.context_length)

    @property
    def fixed(self) -> int:
        """Number of leading context frames that stay fixed in a rollout: the goal, or copies of the initial frame."""
        return self.initial - 1 if self.initial else int(self.goal)

    def __call__(self, batch: TensorDictBase) -> Segment:
        """Read a batch [B, T].

        Raises:
            ValueError: The batch does not fit the model.
        """
        pixels, length = batch["pixels"], 1 if self.initial else self.context_length
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
        if self.initial:
            pixels = torch.cat([self._initial(batch), pixels[:, 1:]], 1)
        rewards = batch["next", "reward"][:, earned].float() if ("next", "reward") in known else None
        terminated = batch["next", "terminated"][:, leading] if ("next", "terminated") in known else None
        states = None
        if self.proprioception:
            values = self.read_states(batch)
            states = values[:, leading], values[:, length:frames]
        return Segment(pixels, self._actions(batch, leading), rewards, terminated, states)

    def context(self, context: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """Read a context.

        Args:
            context: Real steps [B, C'] with `pixels`. A goal-conditioned model also needs `goal` uint8
                [B, C', 3, R, R], whose last step is used, and one with an initial frame `initial`, whose first is; one
                with proprioception needs `state`.

        Returns:
            The context frames of the layout uint8 [B, C, 3, R, R], and the last states [B, P] or None.

        Raises:
            ValueError: The context does not fit the model.
        """
        pixels = context["pixels"]
        self.check_pixels(pixels, f"a context needs pixels uint8 [B, {self.context_length},", self.context_length)
        if self.goal:
            if "goal" not in context.keys():
                raise ValueError("this model is conditioned on a goal: give it as `goal` uint8 beside the pixels")
            pixels = torch.cat([context["goal"][:, -1:], pixels], 1)
        if self.initial:
            pixels = self._initial(context)
        return pixels, self.read_states(context)[:, -1] if self.proprioception else None

    def split(self, steps: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The context frames of the layout, as `context` reads them, and the frames after them, in [0, 1].

        After an initial frame come all steps.
        """
        past = self.context(steps[:, : self.context_length])[0]
        return past.float() / 255, steps["pixels"][:, 0 if self.initial else self.context_length :].float() / 255

    def _initial(self, steps: TensorDictBase) -> Tensor:
        """The context of steps [B, T], uint8 [B, C, 3, R, R]: C times the initial frame of the episode."""
        if "initial" not in steps.keys():
            raise ValueError("this model starts from the initial frame of an episode: give it as `initial` uint8")
        return steps["initial"][:, :1].expand(-1, self.initial, -1, -1, -1)

    def check_pixels(self, pixels: Tensor, wanted: str, frames: int | None = None) -> None:
        """Check pixels.

        Args:
            pixels: Should be uint8 [B, T, 3, R, R].
            wanted: Beginning of the error message.
            frames: T. None: any.

        Raises:
            ValueError: The type or the shape is another.
        """
        side = self.resolution
        right = pixels.dtype == torch.uint8 and pixels.dim() == 5 and tuple(pixels.shape[2:]) == (3, side, side)
        if not right or frames not in (None, pixels.shape[1]):
            raise ValueError(f"{wanted} 3, {side}, {side}], not {pixels.dtype} {list(pixels.shape)}")

    def read_states(self, batch: TensorDictBase) -> Tensor:
        """The first P entries of `state`, float32 [B, T, P].

        Raises:
            ValueError: The batch has fewer or none.
        """
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
