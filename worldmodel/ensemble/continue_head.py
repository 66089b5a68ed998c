"""Which steps terminate their episode: the continue head of the ensemble. B rows, D state width, A action width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.ensemble.transitions import Data

RARE = -4.0  # logit of a termination at first: 2 %, so that a young network does not end every rollout at once


class ContinueHead(nn.Module):
    """A classifier of transitions: from the state, the action and the predicted change to whether the episode ended.

    It reads the change too, because most tasks terminate by the state that a step leads to. One network serves all
    members: it judges the step that was drawn, so that state and termination fit each other.

    Args:
        inputs: D + A.
        states: D.
        width: of the two hidden layers.
    """

    def __init__(self, inputs: int, states: int, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, RARE)
        self.layers = nn.Sequential(
            nn.Linear(inputs + states, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )

    def forward(self, inputs: Tensor, change: Tensor) -> Tensor:
        """Log-odds [B, 1] of a termination.

        Args:
            inputs: whitened states and actions [B, D + A].
            change: whitened targets of the next state [B, D], 0 for copied entries.
        """
        logits: Tensor = self.layers(torch.cat([inputs, change], -1))
        return logits

    def sample(self, inputs: Tensor, change: Tensor) -> Tensor:
        """Whether the steps terminate their episodes, bool [B, 1], drawn; arguments as in `forward`."""
        logits = self(inputs, change)
        return torch.rand_like(logits) < logits.sigmoid()

    def loss(self, data: Data) -> Tensor:
        """Binary cross-entropy on transitions, 0-d."""
        assert data.terminated is not None
        logits = self(data.inputs.flatten(0, -2), data.targets[..., :-1].flatten(0, -2))
        return F.binary_cross_entropy_with_logits(logits, data.terminated.flatten(0, -2).float())

    def step(self, data: Data, optimizer: torch.optim.Optimizer) -> None:
        """Take one gradient step on transitions."""
        loss = self.loss(data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
