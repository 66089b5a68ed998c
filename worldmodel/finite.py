"""Check that losses are finite."""

from collections.abc import Mapping

import torch
from torch import Tensor


def require_finite(losses: Mapping[str, Tensor], setting: str) -> None:
    """Check all losses with a single device synchronisation.

    Args:
        losses: 0-d losses by name.
        setting: Setting of the learning rate, for the error message.

    Raises:
        FloatingPointError: A loss is NaN or infinite.
    """
    values = torch.stack([loss.detach() for loss in losses.values()])
    if not bool(torch.isfinite(values).all()):
        described = ", ".join(f"{name} = {float(value)}" for name, value in zip(losses, values, strict=True))
        raise FloatingPointError(f"a loss of the world model is no longer finite ({described}): lower {setting}")
