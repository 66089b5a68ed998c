"""Networks of an ensemble: Gaussian multilayer perceptrons, computed together.

M members, B rows, I inputs, O outputs.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.products import affine, by_onednn, perceptron

LOWEST, HIGHEST = -10.0, 0.5  # of the log-variance of a whitened output


class Gaussian(NamedTuple):
    """Independent normal distributions, [M, B, O] each."""

    mean: Tensor
    log_variance: Tensor

    def sample(self) -> Tensor:
        return self.mean + torch.randn_like(self.mean) * (0.5 * self.log_variance).exp()


class Members(nn.Module):
    """M perceptrons of equal sizes.

    The log-variances lie softly between two fixed bounds. PETS (Chua et al. 2018, arXiv 1805.12114) learns the bounds,
    with a loss that draws them together. Beside the weighted likelihood below that loss dominates, and all outputs get
    the same variance.

    Args:
        members: M. inputs: I. outputs: O. width: Width of each hidden layer. layers: Number of hidden layers.
    """

    def __init__(self, members: int, inputs: int, outputs: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.count = members
        sizes = [inputs, *[width] * layers, 2 * outputs]
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, i, o)) for i, o in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for _, o in pairs)
        for weight in self.weights:
            std = 0.5 * weight.shape[1] ** -0.5
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, inputs: Tensor, chosen: Tensor | None = None) -> Gaussian:
        """Predict from inputs [M, B, I], or [m, B, I] for the m members with the indices `chosen` int64 [m]."""
        mean, raw = self._outputs(inputs, chosen, slice(None)).chunk(2, -1)
        capped = HIGHEST - F.softplus(HIGHEST - raw)
        return Gaussian(mean, LOWEST + F.softplus(capped - LOWEST))

    def means(self, inputs: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The means [M, B, O] alone, which takes less time; arguments as in `forward`."""
        return self._outputs(inputs, chosen, slice(self.weights[-1].shape[-1] // 2))

    def _outputs(self, inputs: Tensor, chosen: Tensor | None, columns: slice) -> Tensor:
        """These columns of the last layer's output."""
        # Contiguous, because oneDNN multiplies by a slice of a matrix a hundred times slower.
        weights = [*self.weights[:-1], self.weights[-1][..., columns].contiguous()]
        biases = [*self.biases[:-1], self.biases[-1][..., columns].contiguous()]
        if by_onednn(inputs) and not torch.is_grad_enabled():
            numbers = range(self.count) if chosen is None else chosen.tolist()
            each = [([weight[n] for weight in weights], [bias[n, 0] for bias in biases]) for n in numbers]
            return torch.stack([perceptron(rows, *member) for rows, member in zip(inputs, each, strict=True)])
        hidden = inputs
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if chosen is not None:
                weight, bias = weight[chosen], bias[chosen]
            hidden = affine(F.silu(hidden) if number else hidden, weight, bias)
        return hidden

    def loss(self, predicted: Gaussian, targets: Tensor, wanted: Tensor) -> Tensor:
        """Beta-NLL of the entries `wanted` int64 of targets [M, B, O], summed over members; 0-d.

        The negative log-likelihood of each entry times its predicted standard deviation (Seitzer et al. 2022, arXiv
        2203.09168, with beta 0.5). With the plain likelihood, entries that hardly move and whose variance falls take
        almost all of the gradient: on Meta-World's hammer other means were then hardly learned.
        """
        error = (predicted.mean - targets).square() * (-predicted.log_variance).exp() + predicted.log_variance
        error = error * (0.5 * predicted.log_variance.detach()).exp()
        return error[..., wanted].mean((1, 2)).sum()

    def snapshot(self) -> list[Tensor]:
        """Copies of the weights."""
        return [parameter.detach().clone() for parameter in self.parameters()]

    def keep(self, best: list[Tensor], better: Tensor) -> None:
        """Write the current weights of the members where `better` bool [M] into the snapshot `best`."""
        for kept, parameter in zip(best, self.parameters(), strict=True):
            kept.copy_(torch.where(better[:, None, None], parameter.detach(), kept))

    def restore(self, best: list[Tensor]) -> None:
        """Load the weights of a snapshot."""
        for kept, parameter in zip(best, self.parameters(), strict=True):
            parameter.data.copy_(kept)
