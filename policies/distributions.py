"""The distribution of bounded actions. A action."""

from __future__ import annotations

from torch import Tensor
from torchrl.modules.distributions import TruncatedNormal

MIN_STD, MAX_STD = 0.1, 1.0
_STD_OFFSET = 2.0  # zeros mean a deviation of 0.89: near uniform


def bounded_normal(parameters: Tensor) -> TruncatedNormal:
    """Network outputs [*B, 2A] -> a normal on [-1, 1] with event shape [A], truncated there.

    Mean tanh(m) and deviation in [0.1, 1] as DreamerV3 has them (arXiv 2301.04104). DreamerV3 lets the environment
    clip what its normal draws beyond the bounds, so that it scores actions which were never taken. Truncation scores
    those that were; as the mean lies inside the bounds, at least 0.47 of the normal's mass does, and nothing overflows.
    """
    location, spread = parameters.chunk(2, dim=-1)
    std = MIN_STD + (MAX_STD - MIN_STD) * (spread + _STD_OFFSET).sigmoid()
    return TruncatedNormal(location.tanh(), std, low=-1.0, high=1.0)
