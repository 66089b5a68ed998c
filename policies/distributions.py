"""Distribution of bounded actions, and a critic's distribution around a value.

A action.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torchrl.modules import SymExpTwoHot
from torchrl.modules.functional import symlog

MIN_STD, MAX_STD = 0.1, 1.0
_STD_OFFSET = 2.0  # an output of zero gives a standard deviation of 0.89: near uniform
_TAIL = 0.4  # scale in symlog space: wide, so that few updates can move the probability mass
_EDGE = 1e-6  # least probability of either tail, and least distance of an action from the bounds in its log-density


class _Terms(NamedTuple):
    """Terms that log-density and entropy share, each [*B, A]."""

    log_mass: Tensor  # of the normal within the bounds
    log_scale: Tensor
    entropy: Tensor


class BoundedNormal:
    """Independent normals truncated to [-1, 1], event shape [A].

    For actions within the bounds, values and gradients equal TorchRL's `TruncatedNormal` bitwise. That class checks
    arguments and actions on the host, which waits for a GPU five times in an update of DreamerV3, and copies its bounds
    to the GPU.

    Args:
        loc: mean [*B, A] of the normals before truncation, in [-1, 1].
        scale: standard deviation [*B, A] before truncation, above 0.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale

    @property
    def mean(self) -> Tensor:
        """Mean actions [*B, A], nearer to 0 than `loc`: loc .99 with a standard deviation of .89 gives .33."""
        low, high = self._bounds()
        mass = _cumulative(high) - _cumulative(low)
        return self.loc + self.scale * (_density(low) - _density(high)) / mass

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Sample actions [*shape, *B, A] by inverting the distribution."""
        below, above = (_cumulative(bound) for bound in self._bounds())
        mass = (above - below).clamp(_EDGE, 1 - _EDGE)
        uniform = self.loc.new_empty(*shape, *self.loc.shape).uniform_(_EDGE, 1 - _EDGE)
        share = (below + uniform * mass).clamp(_EDGE, 1 - _EDGE)
        standard = math.sqrt(2) * (2 * share - 1).erfinv()
        return (standard * self.scale + self.loc).clamp(-1.0, 1.0)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density [*B] of actions [*B, A]; -inf outside the bounds."""
        terms = self._terms
        standard = (action.clamp(-1.0 + _EDGE, 1.0 - _EDGE) - self.loc) / self.scale
        density = math.log(1 / math.sqrt(2 * math.pi)) - terms.log_mass - (standard**2) * 0.5
        return (density - terms.log_scale).sum(-1).masked_fill((action.abs() > 1.0).any(-1), -torch.inf)

    def entropy(self) -> Tensor:
        """Differential entropy [*B] in nats."""
        return self._terms.entropy.sum(-1)

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """The bounds of the standard normal, [*B, A] each."""
        return (-1.0 - self.loc) / self.scale, (1.0 - self.loc) / self.scale

    @cached_property
    def _terms(self) -> _Terms:
        # The same order of operations as in TorchRL, so that gradients are summed in the same order.
        low, high = self._bounds()
        density_low, density_high = _density(low), _density(high)
        below, above = _cumulative(low), _cumulative(high)
        mass = (above - below).clamp(_EDGE, 1 - _EDGE)
        log_mass = mass.log()
        slope = (density_high * high - density_low * low) / mass
        entropy = 0.5 * math.log(2 * math.pi * math.e) + log_mass - 0.5 * slope
        log_scale = self.scale.log()
        return _Terms(log_mass, log_scale, entropy + log_scale)


def _density(x: Tensor) -> Tensor:
    return (-(x**2) * 0.5).exp() * (1 / math.sqrt(2 * math.pi))


def _cumulative(x: Tensor) -> Tensor:
    return (0.5 * (1 + (x * (1 / math.sqrt(2))).erf())).clamp(_EDGE, 1 - _EDGE)


def bounded_normal(parameters: Tensor) -> BoundedNormal:
    """Normal truncated to [-1, 1], event shape [A], from network outputs [*B, 2A].

    The mean before truncation is tanh(m) and the standard deviation in [0.1, 1], as in DreamerV3 (arXiv 2301.04104).
    DreamerV3 does not truncate: the environment clips its samples, so the log-density belongs to an action that was not
    taken. A truncated normal gives the log-density of the action taken. The mean is inside the bounds, so at least 0.47
    of the normal's mass is too, and the log-density does not overflow.
    """
    location, spread = parameters.chunk(2, dim=-1)
    std = MIN_STD + (MAX_STD - MIN_STD) * (spread + _STD_OFFSET).sigmoid()
    return BoundedNormal(location.tanh(), std)


def logits_around(value: Tensor, two_hot: SymExpTwoHot) -> Tensor:
    """Logits [bins] of a Laplace distribution in symlog space whose mean, as `two_hot` decodes it, is `value`, 0-d."""
    grid, target = symlog(two_hot.bins), symlog(value)
    centre = target
    for _ in range(5):  # symexp raises the mean above the centre: subtract the excess
        centre = centre + target - symlog(two_hot.decode(-(grid - centre).abs() / _TAIL))
    return -(grid - centre).abs() / _TAIL
