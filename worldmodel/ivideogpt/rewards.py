"""Rewards read off pictures: a network on the frames before and after a step and on its action.

The published head is linear in the transformer's hidden state at a frame's last token. That state hardly holds the
rewards of policies that the model has not seen yet; pictures do.
Dimensions: B batch, F future frames, A action width, R resolution.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import SymExpTwoHot
from torchrl.modules.functional import symexp

from worldmodel.ranges import Width

GROUPS = 4  # of the group norms
# In symlog: rewards up to 1096. DreamerV3's bins reach 4.9e8, and the little that a young network leaves there decides
# the mean.
LIMIT, BINS = 7.0, 113
RARE = -4.0  # logit of a termination at first: 2 %, so that a young network does not end every rollout at once


class RewardNetwork(nn.Module):
    """A distribution over the reward of a step, two-hot in the units of the environment (arXiv 2301.04104).

    Rewards beyond 1096 count as 1096, of either sign. The mean is not pulled down by rare high rewards, as that of a
    squared error in symlog is.

    Args:
        resolution: R.
        action_dim: A. None: actions are not read.
        channels: Channels of the convolutions, multiples of 4. Each halves the side of the maps.
        width: Width of the hidden layer.
        terminates: Whether the network also predicts whether a step terminates the episode, by one more output: the
            continue head.

    Raises:
        ValueError: The sizes do not fit together.
    """

    def __init__(
        self,
        resolution: int,
        action_dim: int | None,
        *,
        channels: Sequence[Width] = (24, 32, 48, 48),
        width: Width = 256,
        terminates: bool = False,
    ) -> None:
        super().__init__()
        self.terminates = terminates
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
        self.two_hot = SymExpTwoHot(BINS)
        self.two_hot.bins = symexp(torch.linspace(-LIMIT, LIMIT, BINS))
        self.frames_linear = nn.Linear(sizes[-1] * side**2, width)
        # A layer of its own: in one layer with the many features of the frames, an action would hardly be seen.
        self.action_linear = None if action_dim is None else nn.Linear(action_dim, width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), last := nn.Linear(width, BINS + terminates))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if terminates:
            nn.init.constant_(last.bias[BINS:], RARE)

    def forward(self, frames: Tensor, actions: Tensor | None) -> Tensor:
        """Expected rewards [B, F, 1] float32 in the units of the environment; arguments as in `logits`."""
        return self.expected(self.logits(frames, actions))

    def expected(self, logits: Tensor) -> Tensor:
        """Expected rewards [B, F, 1] of `logits`."""
        expected: Tensor = self.two_hot(logits[..., :BINS])
        return expected

    def ends(self, logits: Tensor) -> Tensor | None:
        """Whether each step terminates the episode, bool [B, F, 1], drawn by `logits`; None without that output."""
        return torch.rand_like(logits[..., BINS:]) < logits[..., BINS:].sigmoid() if self.terminates else None

    def loss(self, logits: Tensor, rewards: Tensor, ended: Tensor | None = None) -> Tensor:
        """Cross-entropy 0-d of `logits` with the rewards [B, F, 1] and, where they are predicted, the terminations.

        Args:
            logits: as `logits` returns them.
            rewards: [B, F, 1].
            ended: bool [B, F, 1], whether the step terminated the episode; a network that predicts it needs it.
        """
        loss: Tensor = self.two_hot.loss(logits[..., :BINS], rewards.squeeze(-1)).mean()
        if not self.terminates:
            return loss
        if ended is None:
            raise ValueError("the continue head learns from terminations: the data hold none")
        return loss + F.binary_cross_entropy_with_logits(logits[..., BINS:], ended.float())

    def logits(self, frames: Tensor, actions: Tensor | None) -> Tensor:
        """Logits of the bins.

        Args:
            frames: uint8 [B, 1 + F, 3, R, R], the first of them before the first step.
            actions: [B, F, A] of the steps.

        Returns:
            [B, F, bins] float32; where terminations are predicted, one more: their log-odds.
        """
        steps = frames.shape[0], frames.shape[1] - 1
        pairs = torch.cat([frames[:, :-1], frames[:, 1:]], 2).flatten(0, 1)
        seen = self.encoder((pairs.float() / 255 - 0.5).contiguous(memory_format=torch.channels_last))
        hidden = self.frames_linear(seen)
        if self.action_linear is not None:
            assert actions is not None
            hidden = hidden + self.action_linear(actions.flatten(0, 1))
        logits: Tensor = self.head(hidden)
        return logits.float().view(*steps, -1)
