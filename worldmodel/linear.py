"""Linear layers that use oneDNN on an AMD processor with AVX-512.

For the matrix sizes of TD-MPC2 and DreamerV3, on one core of such an EPYC, MKL reaches 75 to 125 GFLOP/s and oneDNN
most often 130 to 230. *B batch shape, R rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from worldmodel.products import by_onednn, product

LEAST_WORK = 2**21  # multiplications, R I O, below which MKL is as fast: a call of oneDNN costs 13 µs


class Linear(nn.Linear):
    """`nn.Linear` [*B, I] -> [*B, O] that uses oneDNN where it is faster; equal up to rounding."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.numel() * self.out_features < LEAST_WORK or not by_onednn(inputs):
            return super().forward(inputs)
        outputs: Tensor = _Affine.apply(inputs.flatten(0, -2), self.weight, self.bias)
        return outputs.unflatten(0, inputs.shape[:-1])


class _Affine(torch.autograd.Function):
    """[R, I] x [O, I] + [O] by oneDNN, with gradients, which oneDNN's operator does not have."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_inputs = product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        return of_inputs, product(gradient.t(), inputs.t()), of_bias
