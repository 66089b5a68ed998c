"""Training metrics of a batch. N critics, B batch."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor


def value_metrics(values: Tensor, target: Tensor, batch: TensorDictBase) -> dict[str, Tensor]:
    """Statistics of the critics' values on a batch.

    Args:
        values: [N, B, 1] of N critics.
        target: [B, 1], the target that they learn.
        batch: the transitions [B].

    Returns:
        `q` and `target_q`, means. If the batch has `imagined`, also the means `q_real` and `q_imagined`, which differ
        for a critic that learns from a wrong world model.
    """
    q, target = values.detach().mean(0), target.detach()
    metrics = {"q": q.mean(), "target_q": target.mean()}
    imagined = batch.get("imagined", None)
    if imagined is not None:
        share = imagined / imagined.sum()  # weights, because an index by a mask waits for the GPU
        real = ~imagined / (~imagined).sum()
        metrics |= {"q_real": (q * real).sum(), "q_imagined": (q * share).sum()}
    return metrics
