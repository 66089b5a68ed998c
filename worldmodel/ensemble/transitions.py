"""Transitions as an ensemble learns from them: which are whose, what must be predicted at all, and in which units.

N transitions, M members, D numbers of a state. All of it is a function of the transitions alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.exact_products import exact_products

LEAST_DEVIATION = 1e-4  # what varies less is scaled by this: it is constant, or the simulator's jitter
NOT_COPIED = -1
_PROBED = 1000  # transitions that rule out most candidates for a copy


class Data(NamedTuple):
    """Whitened inputs [N, D + A] and targets [N, D + 1], and which transitions terminated bool [N, 1] or None."""

    inputs: Tensor
    targets: Tensor
    terminated: Tensor | None = None

    def rows(self, rows: Tensor) -> Data:
        """The rows with these indices."""
        return Data(self.inputs[rows], self.targets[rows], None if self.terminated is None else self.terminated[rows])


def uniform(index: Tensor, salt: int) -> Tensor:
    """A number in [0, 1) for each int64 index: the same for the same index and salt, for ever (splitmix64's mixing)."""
    mixed = (index + (salt << 40)) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return _shifted(mixed ^ _shifted(mixed, 31), 11).double() * 2.0**-53


def _shifted(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)  # torch shifts the sign in


def bootstrap(index: Tensor, member: int) -> Tensor:
    """How often each transition is in a member's data: Poisson(1), the limit of drawing N of N; int64 [N]."""
    chances = torch.distributions.Poisson(torch.ones((), dtype=torch.float64)).log_prob(torch.arange(8.0)).exp()
    return torch.searchsorted(chances.cumsum(0).to(index.device), uniform(index, salt=1 + member), right=True)


def held_out(index: Tensor, share: float) -> Tensor:
    """Which transitions are never trained on, bool [N]."""
    return uniform(index, salt=0) < share


def copies(state: Tensor, after: Tensor) -> Tensor:
    """For each entry of the next state the entry of the state that it equals in every transition, int64 [D].

    NOT_COPIED where there is none. An entry that equals itself, like a goal, is a copy of itself.
    """
    probe = state[:_PROBED, :, None] == after[:_PROBED, None, :]
    there, here = probe.all(0).nonzero().unbind(1)
    holds = (state[:, there] == after[:, here]).all(0)
    source = torch.full((state.shape[1],), NOT_COPIED, device=state.device)
    itself = holds & (there == here)
    source[here[holds]] = there[holds]
    source[here[itself]] = there[itself]
    return source


class Whitener(nn.Module):
    """To zero mean, unit deviation and no correlation, and back (ZCA: the whitening that turns the axes least).

    Scaling each entry alone would leave what decides the next state too small to be learned from: a velocity is the
    difference of two positions which differ by millimetres and vary by decimetres. Measured on Meta-World's hammer (one
    seed), the squared one-step error of the hand fell from 0.73 to 0.09 of its squared motion.
    """

    mean: Tensor
    white: Tensor
    coloured: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("white", torch.eye(size))
        self.register_buffer("coloured", torch.eye(size))

    def measure(self, values: Tensor) -> None:
        """Take mean and covariance from values [N, size]."""
        exact = values.double()
        centred = exact - exact.mean(0)
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(values))
        deviation = variance.clamp(min=LEAST_DEVIATION**2).sqrt()
        self.mean.copy_(exact.mean(0))
        self.white.copy_((axes / deviation) @ axes.T)
        self.coloured.copy_((axes * deviation) @ axes.T)

    def forward(self, values: Tensor) -> Tensor:
        with exact_products():
            return (values - self.mean) @ self.white

    def inverse(self, values: Tensor) -> Tensor:
        with exact_products():
            return values @ self.coloured + self.mean
