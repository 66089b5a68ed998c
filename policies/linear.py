"""Linear layers that use oneDNN on an AMD processor with AVX-512.

PyTorch multiplies float32 matrices by MKL, which reaches 60 to 110 GFLOP/s on one core of such an EPYC for the matrix
sizes of SAC and DrQ-v2; oneDNN reaches 75 to 215. On an EPYC with AVX2 alone MKL is 1.03 to 1.26 times as fast.
B rows, I inputs, O outputs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CPUINFO = Path("/proc/cpuinfo")
LEAST_WORK = 2**21  # multiplications, B I O, below which MKL is as fast: a call of oneDNN costs 13 µs


@cache
def onednn_is_faster() -> bool:
    """Whether the processor is AMD's with AVX-512, which MKL does not use. Detected on Linux only.

    It is detected by name, not by a timing, so that a resumed run rounds as before.
    """
    words = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    return "AuthenticAMD" in words and "avx512f" in words


class Linear(nn.Linear):
    """`nn.Linear` [*B, I] -> [*B, O] that uses oneDNN where it is faster; equal up to rounding."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.numel() * self.out_features >= LEAST_WORK and _by_onednn(inputs, self.weight):
            outputs: Tensor = _Affine.apply(inputs.flatten(0, -2), self.weight, self.bias)
            return outputs.unflatten(0, inputs.shape[:-1])
        return super().forward(inputs)


def members_affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Products [M, B, I] x [M, I, O] + [M, 1, O] of M members, with gradients; by oneDNN where it is faster."""
    if inputs[0].numel() * weight.shape[-1] < LEAST_WORK or not _by_onednn(inputs[0], weight):
        return torch.baddbmm(bias, inputs, weight)
    members = zip(inputs.unbind(), weight.unbind(), bias.unbind(), strict=True)
    return torch.stack([_Affine.apply(rows, matrix.t(), shift[0]) for rows, matrix, shift in members])


def _by_onednn(inputs: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can multiply these: float32 on a CPU, not compiled, without autocast and vmap."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if inputs.device.type != "cpu" or inputs.ndim < 2 or not inputs.dtype == weight.dtype == torch.float32:
        return False
    usable = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and onednn_is_faster()
    return bool(usable) and not torch.is_autocast_enabled("cpu")


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply inputs [B, I] by the transpose of a weight [O, I], and add a bias [O]."""
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return outputs


class _Affine(torch.autograd.Function):
    """`_product` with gradients, which oneDNN's operator does not have."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        (gradient,), (of_inputs, of_weight, of_bias) = gradients, ctx.needs_input_grad
        product = _Affine.apply if torch.is_grad_enabled() else _product  # the first has second derivatives
        return (
            product(gradient, weight.t(), None) if of_inputs else None,
            product(gradient.t(), inputs.t(), None) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )
