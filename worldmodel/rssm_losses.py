"""What DreamerV3's world model descends, as pure functions. B batch, T time, S categoricals, K classes."""

from __future__ import annotations

from torch import Tensor
from torchrl.modules.functional import symlog


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """KL(left ‖ right) of categoricals given as probabilities above 0, [*B, S, K] -> [*B], summed over S."""
    return (left * (left.log() - right.log())).sum((-2, -1))


def kl_losses(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
    """Both halves of the balanced KL, each [*B]: one trains the prior alone, the other the posterior alone.

    The divergence is summed over the categoricals first and clipped then: below `free_nats` nothing is trained.
    """
    dynamics = divergence(posterior.detach(), prior).clamp(min=free_nats)
    representation = divergence(posterior, prior.detach()).clamp(min=free_nats)
    return dynamics, representation


def pixel_loss(predicted: Tensor, pixels: Tensor) -> Tensor:
    """Squared error summed over a picture: predicted [*B, 3, R, R] in [0, 1] and pixels uint8 -> [*B]."""
    return (predicted - pixels.float() / 255).square().sum((-3, -2, -1))


def state_loss(predicted: Tensor, state: Tensor) -> Tensor:
    """Squared error of symlog values summed over a state: predicted [*B, S], in symlog space -> [*B]."""
    return (predicted - symlog(state)).square().sum(-1)
