"""Loss functions of DreamerV3's world model, as pure functions. B batch, T time, S categoricals, K classes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """KL(left ‖ right) of categoricals given as probabilities above 0, [*B, S, K] -> [*B], summed over S."""
    return (left * (left.log() - right.log())).sum((-2, -1))


def kl_losses(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
    """Both terms of the balanced KL, each [*B]: the first trains the prior alone, the second the posterior alone.

    The divergence is summed over the categoricals and then clipped: below `free_nats` there is no gradient.
    """
    dynamics = divergence(posterior.detach(), prior).clamp(min=free_nats)
    representation = divergence(posterior, prior.detach()).clamp(min=free_nats)
    return dynamics, representation


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error of [N, ...], summed over the numbers of a step and averaged over the N steps: 0-d."""
    return F.mse_loss(predicted, target, reduction="sum") / len(target)
