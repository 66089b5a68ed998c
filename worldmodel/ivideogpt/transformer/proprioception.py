"""The robot's own state beside the pixels: read by the slot before each frame, predicted at each frame's end.

Not published: iVideoGPT sees pixels alone. P numbers of state, D model width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Proprioception(nn.Module):
    """Reads states and predicts their changes, both in units of what training batches showed (running means).

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
            nn.init.zeros_(parameter)  # at first a state changes nothing, as in a model without it
        nn.init.normal_(self.predict.weight, std=0.02)

    def watch(self, states: Tensor, after: Tensor) -> None:
        """Take a training batch [..., P] of states and of those one step later into the running means.

        One that is not finite is passed over: its loss will be refused, and the means must not keep it.
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
        """Final hidden states [..., D] at a frame's last token, and states [..., P] before it -> states there."""
        mean, deviation = _moments(self.changes)
        return states + mean + deviation * self.predict(hidden).float()

    def loss(self, hidden: Tensor, states: Tensor, after: Tensor) -> Tensor:
        """Mean squared error of the changes, in their own units; 0-d."""
        mean, deviation = _moments(self.changes)
        return F.mse_loss(self.predict(hidden).float(), (after - states - mean) / deviation)


def _moments(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [P] of what it has seen."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, (norm.running_var + norm.eps).sqrt()
