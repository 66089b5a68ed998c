"""Matrix products, also of several members, that use oneDNN on an AMD processor with AVX-512.

PyTorch's batched product calls MKL, which uses half the width of an AMD EPYC's vector units: 95 GFLOP/s on one core,
where oneDNN reaches 135 to 170 for these sizes. On an Intel Xeon MKL takes .6 of the time of oneDNN, which needs one
product for each member, and on an EPYC with AVX2 alone .8 to .95. M members, B rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CPUINFO = Path("/proc/cpuinfo")


@cache
def onednn_is_faster() -> bool:
    """Whether the processor is AMD's with AVX-512, which MKL does not use. Detected on Linux only.

    It is detected by name, not by a timing, so that a resumed run rounds as before.
    """
    words = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    return "AuthenticAMD" in words and "avx512f" in words


def by_onednn(inputs: Tensor) -> bool:
    """Whether oneDNN can multiply these inputs: float32 on a CPU, not compiled, without autocast."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    usable = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and onednn_is_faster()
    return bool(usable) and inputs.device.type == "cpu" and inputs.dtype == torch.float32 and inputs.numel() > 0


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Products [M, B, I] x [M, I, O] + [M, 1, O], with gradients."""
    if by_onednn(inputs):
        outputs: Tensor = _Affine.apply(inputs, weight, bias)
        return outputs
    return torch.baddbmm(bias, inputs, weight)


def perceptron(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Outputs [B, O] of one member for inputs [B, I] by oneDNN, without gradients; weights [I, O], biases [O]."""
    hidden = inputs
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        hidden = product(F.silu(hidden, inplace=True) if number else hidden, weight.t(), bias)
    return hidden


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply inputs [B, I] by the transpose of a weight [O, I], and add a bias [O]."""
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return outputs


class _Affine(torch.autograd.Function):
    """`affine` by oneDNN, with gradients, which oneDNN's operator does not have."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        members = zip(inputs, weight, bias[:, 0], strict=True)
        return torch.stack([product(rows, matrix.t(), shift) for rows, matrix, shift in members])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.stack([product(*pair) for pair in zip(gradient, weight, strict=True)])
        of_weight = torch.stack([product(rows.t(), out.t()) for rows, out in zip(inputs, gradient, strict=True)])
        return of_inputs, of_weight, gradient.sum(1, keepdim=True)
