"""Token by token decoding through a key/value cache, on a snapshot of the transformer's weights.

R rollout rows, L context tokens, D width, n dynamics tokens a frame.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.ivideogpt.attention import rotate
from worldmodel.ivideogpt.cache import KeyValueCache
from worldmodel.ivideogpt.llama import NORM_EPS, DecoderLayer
from worldmodel.ivideogpt.transformer import VideoTransformer


@dataclass(frozen=True)
class Sampling:
    """How the next code is chosen.

    Attributes:
        temperature: 0 takes the most likely code.
        top_k: choose among the k most likely; None for all.
        any_token: a published defect for study: context codes and separators may be drawn in place of
            dynamics codes; they are fed back as they are.
    """

    temperature: float = 1.0
    top_k: int | None = None
    any_token: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0 (0 is greedy), not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or null for all codes, not {self.top_k}")

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Indices [R] from logits [R, V] by inverting the distribution at ``uniform`` [R, 1] in [0, 1)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits / self.temperature
        if self.top_k is None or self.top_k >= logits.shape[-1]:
            return _invert(logits, uniform)
        logits, index = logits.topk(self.top_k, -1)
        return index.gather(1, _invert(logits, uniform).unsqueeze(1)).squeeze(1)


def _invert(logits: Tensor, uniform: Tensor) -> Tensor:
    cumulative = logits.softmax(-1).cumsum(-1)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
    return index.clamp_(max=logits.shape[-1] - 1)  # rounding may put the last draw at the very end


class _Layer:
    """One layer's weights in the decoding type, queries, keys and values fused, gate and up fused."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention_norm = layer.input_layernorm.weight.detach().clone().float()
        self.mlp_norm = layer.post_attention_layernorm.weight.detach().clone().float()
        qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        self.qkv = torch.cat(qkv).detach().to(dtype)
        self.out = attention.o_proj.weight.detach().to(dtype, copy=True)
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach().to(dtype)
        self.down = mlp.down_proj.weight.detach().to(dtype, copy=True)

    def feed(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual stream [..., D] and attention output [..., D] to the layer's output."""
        x = x + F.linear(attended.to(self.out.dtype), self.out)
        hidden = F.rms_norm(x, self.mlp_norm.shape, self.mlp_norm, NORM_EPS)
        gate, up = F.linear(hidden.to(self.out.dtype), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


class CachedDecoder:
    """A snapshot of a transformer for imagining: encode a context once, then go on token by token.

    Args:
        transformer: the weights are copied; a later update of it does not change this decoder.
        dtype: type of the matrix products; the residual stream and the norms stay float32.
        dropout: attention dropout while decoding; anything but 0 is a published defect for study.
    """

    def __init__(self, transformer: VideoTransformer, dtype: torch.dtype, dropout: float = 0.0) -> None:
        decoder, self.layout = transformer.llm.model, transformer.layout
        self.heads, self.dropout, self.dtype = transformer.heads, dropout, dtype
        self.cos, self.sin = transformer.cos, transformer.sin
        self.embedding = decoder.embed_tokens.weight.detach().clone().float()
        self.layers = [_Layer(layer, dtype) for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self.norm = decoder.norm.weight.detach().clone().float()
        head = transformer.llm.lm_head.weight.detach()
        self.any_head = head.to(dtype, copy=True)
        self.code_head = self.any_head[self.layout.context_codes : self.layout.separator]
        self.edges = copy.deepcopy(transformer.edges)

    @torch.no_grad()
    def encode(self, tokens: Tensor, frames: int, added: Tensor | None = None) -> KeyValueCache:
        """Encode the start of a segment at once.

        Args:
            tokens: int64 [B, P], the context and any future frames that are known already.
            frames: imagined frames to keep room for.
            added: [B, F, D] that the slots of the known future frames gain (Heads.condition); None for nothing.
        """
        x = F.embedding(tokens, self.embedding)  # [B, P, D]
        if added is not None:
            x[:, self.layout.prefix :: self.layout.stride] += added
        batch, length, width = x.shape
        room = frames * self.layout.stride
        cache = KeyValueCache.allocate(len(self.layers), batch, self.heads, room, width // self.heads, x)
        cos, sin = self.cos[:length], self.sin[:length]
        for layer in self.layers:
            q, k, v = self._project(layer, x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # [B, h, P, d]
            attended = cache.attend_context(q, k, v, self.dtype, self.dropout)
            x = layer.feed(x, attended.transpose(1, 2).flatten(2))
        return cache

    @torch.no_grad()
    def imagine(self, cache: KeyValueCache, added: Tensor | None, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """One frame: the slot with what it gains, then n sampled codes, each fed back.

        Args:
            cache: R rows; gains n + 1 tokens.
            added: [R, D] that the slot gains (Heads.condition); None for nothing.

        Returns:
            Tokens int64 [R, n] in the segment's numbering, and the final hidden state [R, D] at the last of them.
        """
        rows, layout = cache.keys.shape[1], self.layout
        uniform = torch.rand(layout.dynamics_tokens, rows, 1, device=cache.keys.device)
        head, offset = (self.any_head, 0) if sampling.any_token else (self.code_head, layout.context_codes)
        x = self.embedding[layout.slot].expand(rows, -1)
        if added is not None:
            x = x + added
        tokens = []
        for draw in uniform:
            logits = F.linear(self._advance(x, cache).to(self.dtype), head).float()
            tokens.append(sampling.choose(logits, draw) + offset)
            x = F.embedding(tokens[-1], self.embedding)
        return torch.stack(tokens, 1), self._advance(x, cache)

    def _project(self, layer: _Layer, x: Tensor) -> Tensor:
        hidden = F.rms_norm(x, layer.attention_norm.shape, layer.attention_norm, NORM_EPS)
        return F.linear(hidden.to(self.dtype), layer.qkv).float()

    def _advance(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """One token's embedding [R, D] to its final hidden state [R, D]; the cache gains the token."""
        cos, sin = self.cos[cache.position], self.sin[cache.position]
        for index, layer in enumerate(self.layers):
            q, k, v = self._project(layer, x).unflatten(-1, (3, self.heads, -1)).unbind(1)  # [R, h, d]
            attended = cache.attend(index, rotate(q, cos, sin), rotate(k, cos, sin), v, self.dropout)
            x = layer.feed(x, attended.flatten(1))
        cache.filled += 1
        return F.rms_norm(x, self.norm.shape, self.norm, NORM_EPS)
