"""Proprioception: the robot's state is an input at each frame's slot, and is predicted from each frame's hidden state.

Not published: iVideoGPT reads pixels alone. P numbers of state, D model width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Proprioception(nn.Module):
    """Embeds states and predicts their changes, both standardised by running means over training batches.

    Args:
        size: P. width: D.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.states = nn.BatchNorm1d(size, affine=False, momentum=None, eps=1e-6)  # mean over all batches
        self.changes = nn.BatchNorm1d(size, affine=False, momentum=None, eps=1e-6)
        self.read = nn.Linear(size, width)
        self.predict = nn.Linear(width, size)
        for parameter in (self.read.weight, self.read.bias, self.predict.bias):
            nn.init.zeros_(parameter)  # An untrained state has no effect.
        nn.init.normal_(self.predict.weight, std=0.02)

    def watch(self, states: Tensor, after: Tensor) -> None:
        """Update the running means with a training batch [..., P] of states and of the states one step later.

        A batch that is not finite is skipped, so that the means stay finite; its loss raises an error later.
        """
        if not torch.isfinite(states).all() or not torch.isfinite(after).all():
            return
        with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
            for norm, values in ((self.states, states), (self.changes, after - states)):
                norm.train()(values.flatten(0, -2).float())

    def embed(self, states: Tensor) -> Tensor:
        """Conditioning [..., D] of states [..., P]."""
        mean, deviation = _moments(self.states)
        return self.read((states - mean) / deviation)

    def next(self, hidden: Tensor, states: Tensor) -> Tensor:
        """Predict states [..., P] at frames from their hidden states [..., D] and the states [..., P] before them."""
        mean, deviation = _moments(self.changes)
        return states + mean + deviation * self.predict(hidden).float()

    def loss(self, hidden: Tensor, states: Tensor, after: Tensor) -> Tensor:
        """Mean squared error of the standardised changes, 0-d."""
        mean, deviation = _moments(self.changes)
        return F.mse_loss(self.predict(hidden).float(), (after - states - mean) / deviation)


def _moments(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [P] of all values so far."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, (norm.running_var + norm.eps).sqrt()
