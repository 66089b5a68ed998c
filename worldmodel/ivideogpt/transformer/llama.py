"""LLaMA's blocks, with the tensor names of the published files. L tokens, D width. Source: arXiv 2302.13971."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.ivideogpt.attention import causal_attention, rotate

NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    """x / rms(x) · weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)


class SelfAttention(nn.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, first: int = 0) -> Tensor:
        """As `DecoderLayer.forward`."""
        q, k, v = (
            proj(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, tokens in ((self.q_proj, x[:, first:]), (self.k_proj, x), (self.v_proj, x))
        )  # [B, heads, L - first or L, D / heads]
        dropout = self.dropout if self.training else 0.0
        q, k = rotate(q, cos[first:], sin[first:]), rotate(k, cos, sin)
        out = causal_attention(q, k, v, dropout, mask=None if mask is None else mask[first:])
        return self.o_proj(out.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_width, bias=False)
        self.up_proj = nn.Linear(width, mlp_width, bias=False)
        self.down_proj = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width)
        self.self_attn = SelfAttention(width, heads, dropout)
        self.post_attention_layernorm = RMSNorm(width)
        self.mlp = GatedMLP(width, mlp_width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, first: int = 0) -> Tensor:
        """Outputs [B, L - first, D] of the tokens from index `first` on; earlier tokens are keys and values alone.

        Args:
            x: [B, L, D].
            cos, sin: of the rotary positions, [L, D / heads].
            mask: as in `causal_attention`, [L, L].
            first: 0 to L - 1.
        """
        x = x[:, first:] + self.self_attn(self.input_layernorm(x), cos, sin, mask, first)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, mlp_width, dropout) for _ in range(layers))
        self.norm = RMSNorm(width)


class LanguageModel(nn.Module):
    """A decoder and its untied output head, as in action-free files."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.model = Decoder(vocabulary, width, layers, heads, mlp_width, dropout)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
