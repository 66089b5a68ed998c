"""What learners log of a batch. N critics, B batch."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor


def value_metrics(values: Tensor, target: Tensor, batch: TensorDictBase) -> dict[str, Tensor]:
    """What the critics say of a batch.

    Args:
        values: [N, B, 1] of N critics.
        target: [B, 1], what they learn.
        batch: the transitions [B].

    Returns:
        `q` and `target_q`, means. Where the batch tells real from `imagined` rows, `q_real` and `q_imagined` too: a
        critic that learns from a wrong world model values the two differently.
    """
    q, target = values.detach().mean(0), target.detach()
    metrics = {"q": q.mean(), "target_q": target.mean()}
    imagined = batch.get("imagined", None)
    if imagined is not None:
        share = imagined / imagined.sum()  # weights: an index by a mask would wait for the GPU
        real = ~imagined / (~imagined).sum()
        metrics |= {"q_real": (q * real).sum(), "q_imagined": (q * share).sum()}
    return metrics
