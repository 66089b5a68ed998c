"""Ensemble of critics whose values are categorical distributions in symlog space.

N critics, n of them chosen, *B batch shape, R rows, D features, A action.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules.functional import symexp, symlog
from torchrl.objectives import two_hot_encode

from policies.linear import members_affine
from policies.mish import Mish


class TwoHotCritics(nn.Module):
    """N perceptrons of equal sizes; each layer is one batched product.

    Each has two hidden layers (Linear, LayerNorm, Mish), with dropout after the first linear layer, and starts at
    value 0.

    Args:
        in_size: D + A.
        count: N.
        width: width of the hidden layers.
        bins: number of values of the distribution, evenly spaced in symlog space.
        limit: largest value in symlog space: values lie within symexp(-limit) and symexp(limit).
        dropout: dropout probability of the outputs of the first linear layer in training.
    """

    bins: Tensor

    def __init__(self, in_size: int, count: int, *, width: int, bins: int, limit: float, dropout: float) -> None:
        super().__init__()
        self.count, self.dropout, self.activation = count, dropout, Mish()
        sizes = (in_size, width, width, bins)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(count, *pair)) for pair in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(count, 1, size)) for size in sizes[1:])
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(count, 1, width)) for _ in range(2))
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(count, 1, width)) for _ in range(2))
        for weight in list(self.weights)[:-1]:
            nn.init.normal_(weight, std=0.02)
        self.register_buffer("bins", torch.linspace(-limit, limit, bins))

    def forward(self, features: Tensor, action: Tensor, chosen: Tensor | None = None, *, drops: bool = False) -> Tensor:
        """Logits of values.

        Args:
            features: [*B, D].
            action: [*B, A].
            chosen: int64 [n], indices of critics; None: all critics.
            drops: whether dropout is applied.

        Returns:
            [n, *B, bins].
        """
        inputs = torch.cat((features, action), -1)
        hidden = inputs.flatten(0, -2).expand(self.count if chosen is None else len(chosen), -1, -1)  # [n, R, D + A]
        for layer, weight in enumerate(self.weights):
            bias = self.biases[layer]
            if chosen is not None:
                weight, bias = weight[chosen], bias[chosen]
            hidden = members_affine(hidden, weight, bias)
            if layer < len(self.gains):
                gain, shift = self.gains[layer], self.shifts[layer]
                if chosen is not None:
                    gain, shift = gain[chosen], shift[chosen]
                if drops and layer == 0:
                    hidden = dropped(hidden, self.dropout)
                hidden = self.activation(torch.addcmul(shift, F.layer_norm(hidden, hidden.shape[-1:]), gain))
        return hidden.unflatten(1, inputs.shape[:-1])

    def values(self, features: Tensor, action: Tensor, chosen: Tensor, *, drops: bool = False) -> Tensor:
        """Values [n, *B, 1] of the critics `chosen` [n], with or without dropout."""
        return symexp(self(features, action, chosen, drops=drops).softmax(-1) @ self.bins).unsqueeze(-1)

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [N, *B] of logits [N, *B, bins] to targets [*B, 1]."""
        code = two_hot_encode(symlog(target.squeeze(-1)), self.bins)
        return -(code * logits.log_softmax(-1)).sum(-1)

    def draw(self, count: int) -> Tensor:
        """Sample indices int64 [count] of different critics."""
        return torch.randperm(self.count, device=self.bins.device)[:count]


def dropped(values: Tensor, share: float) -> Tensor:
    """Dropout with a small probability `share` on values of any shape; the others are divided by 1 - share.

    On a CPU it samples the dropped places, while torch's dropout samples a number for each value: with 1 % it is at
    least four times as fast. A value is hit by a Poisson number of draws, which is 0 with probability 1 - share. On a
    GPU torch's dropout is used, because a CUDA graph would repeat the number of places of its capture.
    """
    if share == 0:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, share)
    draws = int(torch.poisson(torch.tensor(-math.log1p(-share) * values.numel(), dtype=torch.float64)))
    places = torch.randint(values.numel(), (draws,), device=values.device)
    return (values / (1 - share)).flatten().index_fill(0, places, 0.0).view_as(values)
