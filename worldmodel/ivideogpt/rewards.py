"""Reward networks: predict the reward of a step from the frames (or tokens) before and after it and its action.

The published head is linear in the transformer's hidden state at a frame's last token. It generalises poorly to the
rewards of policies that the model was not trained on; a network on frames or dynamics tokens generalises better.
Dimensions: B batch, F future frames, A action width, R resolution, L width of the latents of a frame.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import SymExpTwoHot
from torchrl.modules.functional import symexp

from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ranges import Padding, ShareBelowOne, Width
from worldmodel.shifts import random_shift

GROUPS = 4  # of the group norms
# In symlog: rewards up to 1096. DreamerV3's bins reach 4.9e8, and the small probability that an untrained network
# gives to such bins dominates the mean.
LIMIT, BINS = 7.0, 113
RARE = -4.0  # initial logit of a termination (2 %), so that an untrained network does not end every rollout at once


class Sized(Protocol):
    """Protocol of an object with a frame resolution, in pixels."""

    @property
    def resolution(self) -> int: ...


class Frames(NamedTuple):
    """Frames of a side in pixels, where there is no tokenizer."""

    resolution: int


class TwoHotRewards(nn.Module):
    """A distribution over the reward of a step, two-hot in the units of the environment (arXiv 2301.04104).

    Rewards beyond 1096 count as 1096, of either sign. The mean is not pulled down by rare high rewards, as that of a
    squared error in symlog is.

    Args:
        terminates: Whether it also predicts whether a step terminates the episode, by one more output: the continue
            head.
    """

    def __init__(self, terminates: bool = False) -> None:
        super().__init__()
        self.terminates, self.two_hot = terminates, SymExpTwoHot(BINS)
        self.two_hot.bins = symexp(torch.linspace(-LIMIT, LIMIT, BINS))

    def last_linear(self, width: int) -> nn.Linear:
        """Last layer, from `width` to the logits, initialised to reward 0 and to rare terminations."""
        last = nn.Linear(width, BINS + self.terminates)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if self.terminates:
            nn.init.constant_(last.bias[BINS:], RARE)
        return last

    def read(self, logits: Tensor) -> Tensor:
        """Expected rewards [*B, 1], the means of the distributions given by `logits`."""
        mean: Tensor = self.two_hot(logits[..., :BINS])
        return mean

    def terminations(self, logits: Tensor) -> Tensor | None:
        """Sample whether each step terminates the episode, bool [*B, 1]; None without a continue head."""
        return torch.rand_like(logits[..., BINS:]) < logits[..., BINS:].sigmoid() if self.terminates else None

    def loss(self, logits: Tensor, rewards: Tensor, terminated: Tensor | None = None) -> Tensor:
        """Cross-entropy 0-d of `logits` with the rewards [*B, 1] and, where they are predicted, the terminations.

        Args:
            logits: As `logits` returns them.
            rewards: [*B, 1].
            terminated: Bool [*B, 1], whether the step terminated the episode; required with a continue head.
        """
        loss: Tensor = self.two_hot.loss(logits[..., :BINS], rewards.squeeze(-1)).mean()
        if not self.terminates:
            return loss
        if terminated is None:
            raise ValueError("the continue head learns from terminations: the data hold none")
        return loss + F.binary_cross_entropy_with_logits(logits[..., BINS:], terminated.float())


class RewardNetwork(TwoHotRewards):
    """Predicts the reward of each step from the frames before and after it.

    Without random shifts (DrQ, arXiv 2004.13649) it overfits the few episodes at the start of a run: after 15
    episodes of window-close its rewards of the next five correlated .31 with the true ones, with shifts .78.

    Args:
        tokenizer: Object with `resolution` R, such as the model's tokenizer.
        action_dim: A. None: there are no actions to read.
        channels: Channels of the convolutions, multiples of 4. Each halves the side of the maps.
        width: Width of the hidden layer.
        actions: Whether actions are inputs too. Needed if rewards have an action cost, and for several tasks, whose
            one-hot is appended to the action.
        shift_pad: Largest random shift of both frames of a step, in pixels, while it learns. 0: none.
        terminates: Whether the network also predicts whether a step terminates the episode, by one more output: the
            continue head.

    Raises:
        ValueError: The sizes do not fit together.
    """

    def __init__(
        self,
        tokenizer: Sized,
        action_dim: int | None,
        *,
        channels: Sequence[Width] = (24, 32, 48, 48),
        width: Width = 256,
        actions: bool = True,
        shift_pad: Padding = 4,
        terminates: bool = False,
    ) -> None:
        super().__init__(terminates)
        resolution, self.shift_pad = tokenizer.resolution, shift_pad
        side = resolution >> len(channels)
        if side < 1 or side << len(channels) != resolution or any(count % GROUPS for count in channels):
            raise ValueError(
                f"reward_network.channels={list(channels)}: each must be a multiple of {GROUPS}, and frames of "
                f"{resolution}x{resolution} must halve {len(channels)} times"
            )
        sizes = [6, *channels]
        layers = [
            nn.Sequential(nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(GROUPS, after), nn.SiLU())
            for before, after in pairwise(sizes)
        ]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.frames_linear = nn.Linear(sizes[-1] * side**2, width)
        # A separate layer, because the many frame features would outweigh the few action entries in a joint one.
        self.action_linear = nn.Linear(action_dim, width) if actions and action_dim is not None else None
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), self.last_linear(width))

    def forward(self, frames: Tensor, actions: Tensor | None) -> Tensor:
        """Rewards [B, F, 1] float32 in the units of the environment, see `read`; arguments as in `logits`."""
        return self.read(self.logits(frames, actions))

    def logits(self, frames: Tensor, actions: Tensor | None, learning: bool = False) -> Tensor:
        """Logits of the bins.

        Args:
            frames: uint8 [B, 1 + F, 3, R, R], the first of them before the first step.
            actions: [B, F, A] of the steps.
            learning: Whether the frames are shifted, each step's by themselves.

        Returns:
            [B, F, bins] float32; where terminations are predicted, one more: their log-odds.
        """
        hidden = self.read_frames(frames, learning)
        if self.action_linear is not None:
            assert actions is not None
            hidden = hidden + self.action_linear(actions)
        logits: Tensor = self.head(hidden)
        return logits.float()

    def read_frames(self, frames: Tensor, learning: bool = False) -> Tensor:
        """Features [B, F, width] of the frames before and after each step; arguments as in `logits`."""
        steps = frames.shape[0], frames.shape[1] - 1
        pairs = torch.cat([frames[:, :-1], frames[:, 1:]], 2).flatten(0, 1)
        if learning and self.shift_pad:
            pairs = random_shift(pairs, self.shift_pad)
        seen = self.encoder((pairs.float() / 255 - 0.5).contiguous(memory_format=torch.channels_last))
        features: Tensor = self.frames_linear(seen)
        return features.view(*steps, -1)


class TokenRewardNetwork(TwoHotRewards):
    """Predicts the reward of each step from the dynamics tokens of the frames before and after it.

    A frame must have the same tokens wherever a segment begins, see Conditioning.initial. No frame is decoded for the
    reward. Dropout is needed, because the network overfits few episodes. With the tokens of the initial frame as input
    it memorises the episodes (window-close, 40 episodes: correlation with the rewards of the next ten .49, and .77
    without them).

    Args:
        tokenizer: Of the model, for L.
        action_dim: A. None: actions are not read.
        width: Width of the hidden layers.
        dropout: Dropout probability of inputs and hidden layers, 0 to below 1.
        terminates: See TwoHotRewards.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        action_dim: int | None,
        *,
        width: Width = 256,
        dropout: ShareBelowOne = 0.3,
        terminates: bool = False,
    ) -> None:
        super().__init__(terminates)
        self.frames_linear = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * tokenizer.latent_size, width))
        self.action_linear = None if action_dim is None else nn.Linear(action_dim, width)
        hidden = (nn.LayerNorm(width), nn.SiLU(), nn.Dropout(dropout))
        self.head = nn.Sequential(*hidden, nn.Linear(width, width), *copy.deepcopy(hidden), self.last_linear(width))

    def forward(self, before: Tensor, after: Tensor, actions: Tensor | None) -> Tensor:
        """Rewards [*B, 1] float32 in the environment's units, see `read`; arguments as in `logits`."""
        return self.read(self.logits(before, after, actions))

    def logits(self, before: Tensor, after: Tensor, actions: Tensor | None) -> Tensor:
        """Logits of the bins.

        Args:
            before: [*B, L], latents of the frames before the steps.
            after: [*B, L], of the frames after them.
            actions: [*B, A] of the steps.

        Returns:
            [*B, bins] float32.
        """
        hidden = self.frames_linear(torch.cat([before, after], -1))
        if self.action_linear is not None:
            assert actions is not None
            hidden = hidden + self.action_linear(actions)
        logits: Tensor = self.head(hidden)
        return logits.float()
