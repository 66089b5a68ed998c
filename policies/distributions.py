"""The distribution of bounded actions, and a critic's distribution around a value.

A action.
"""

from __future__ import annotations

from torch import Tensor
from torchrl.modules import SymExpTwoHot
from torchrl.modules.distributions import TruncatedNormal
from torchrl.modules.functional import symlog

MIN_STD, MAX_STD = 0.1, 1.0
_STD_OFFSET = 2.0  # an output of zero is a standard deviation of 0.89: near uniform
_TAIL = 0.4  # in symlog: wide, so that few updates move the mass elsewhere


def bounded_normal(parameters: Tensor) -> TruncatedNormal:
    """Network outputs [*B, 2A] -> a normal on [-1, 1] with event shape [A], truncated there.

    The mean is tanh(m) and the standard deviation in [0.1, 1], as in DreamerV3 (arXiv 2301.04104). DreamerV3 does not
    truncate: the environment clips its samples, so the log-density is that of actions which were not taken.
    A truncated normal gives the log-density of the action taken. Its mean lies inside the bounds, so that at least 0.47
    of the normal's mass does, and the log-density does not overflow.
    """
    location, spread = parameters.chunk(2, dim=-1)
    std = MIN_STD + (MAX_STD - MIN_STD) * (spread + _STD_OFFSET).sigmoid()
    return TruncatedNormal(location.tanh(), std, low=-1.0, high=1.0)


def logits_around(value: Tensor, two_hot: SymExpTwoHot) -> Tensor:
    """Logits [bins] of a Laplace distribution in symlog space whose mean, as `two_hot` decodes it, is `value`, 0-d."""
    grid, target = symlog(two_hot.bins), symlog(value)
    centre = target
    for _ in range(5):  # symexp raises the mean above the centre: shift by what is too much
        centre = centre + target - symlog(two_hot.decode(-(grid - centre).abs() / _TAIL))
    return -(grid - centre).abs() / _TAIL
