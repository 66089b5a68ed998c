"""Attention and rotary positions. B batch, h heads, L tokens, S keys, d head width."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROPE_THETA = 1e4
# On a CPU in bfloat16 two plain products are 2.0 to 3.9 times as fast, forward and backward, as torch's fused kernel
# (heads of 64; segments of 129, 179 and 299 tokens). For longer segments the scores take too much memory.
PLAIN_TOKENS = 512
# Without a causal mask: 1.1 to 4 times as fast up to this many scores (heads of 16 to 512, 64 to 256 queries); beyond,
# the fused kernel is as fast or faster and takes less memory.
PLAIN_SCORES = 2**22


def rope_table(positions: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, head_width] of the rotary embedding, both halves alike."""
    frequency = ROPE_THETA ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2) of the last dimension; ``cos`` and ``sin`` [..., d], halves alike, are broadcast."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.chunk(2, -1)[0], sin.chunk(2, -1)[0]
    return torch.cat([(first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype)], -1)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float = 0.0,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention of the last L of S tokens, each to itself and those before it.

    Args:
        q: [B, h, L, d].
        k, v: [B, h, S, d].
        scale: multiplies the scores; None for d^-0.5.
        mask: [L, S], 0 or -inf, added to the scores instead of the causal mask. None: causal.

    Returns:
        [B, h, L, d].
    """
    length, tokens = q.shape[2], k.shape[2]
    if mask is None and length < tokens:
        mask = q.new_full((length, tokens), float("-inf")).triu(1 + tokens - length)
    if not _plain(q) or length > PLAIN_TOKENS:
        given = None if mask is None else mask.to(q.dtype)
        fused = partial(
            F.scaled_dot_product_attention, attn_mask=given, dropout_p=dropout, is_causal=mask is None, scale=scale
        )
        if dropout and q.device.type == "cpu" and q.requires_grad:
            # The CPU kernel has no dropout. Torch's fallback keeps several numbers for every pair of tokens and layer
            # until the backward pass: more than all else together. Checkpointing recomputes them instead.
            return checkpoint(fused, q, k, v, use_reentrant=False)
        return fused(q, k, v)
    future = q.new_full((length, length), float("-inf")).triu(1) if mask is None else mask.to(q.dtype)
    keys = k.flatten(0, 1).transpose(1, 2)
    alpha = q.shape[-1] ** -0.5 if scale is None else scale
    return _weigh(torch.baddbmm(future, q.flatten(0, 1), keys, alpha=alpha), v, dropout)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention of q [B, h, L, d] to all of k, v [B, h, S, d]; [B, h, L, d]."""
    if not _plain(q) or q.shape[:3].numel() * k.shape[2] > PLAIN_SCORES:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return _weigh(torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1).transpose(1, 2)), v, dropout)


def _weigh(scores: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Values [B, h, S, d] weighed by the softmax of scores [B * h, L, S]; [B, h, L, d]."""
    weights = scores.softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights.to(v.dtype), v.flatten(0, 1)).unflatten(0, v.shape[:2])


def _plain(q: Tensor) -> bool:
    """Whether plain products beat torch's fused kernel: on a CPU, in bfloat16."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16
