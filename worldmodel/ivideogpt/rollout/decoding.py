"""Decoding with a KV cache, on a snapshot of the transformer's weights.

R rollout rows, P context tokens, D width, h heads, d head width, n dynamics tokens a frame, q tokens at a time.

At a small batch, decoding is bound by memory and by the number of operations, so the snapshot fuses weights: each RMS
norm's weight is multiplied into the matrix after it; queries, keys and values are one product, and so are gate and up.
The rotary pairs (i, i + d/2) are put side by side as the two parts of a complex number, so that one complex product
rotates queries and keys and scales the queries.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.ivideogpt.attention import causal_attention
from worldmodel.ivideogpt.precision import has_bfloat16_kernels
from worldmodel.ivideogpt.rollout.cache import KeyValueCache
from worldmodel.ivideogpt.transformer.llama import NORM_EPS, DecoderLayer
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer
from worldmodel.ranges import Codes, Weight

# Context tokens that a CPU encodes together, about: their activations stay in its caches.
CACHED_TOKENS = 2048
FIXED_POINT = 2.0**40  # scale of probabilities as integers, whose sums are deterministic on a GPU


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling the next code.

    Args:
        temperature: Divides the logits. 0: the most likely code.
        top_k: Sample among the k most likely codes. None: all.

    Raises:
        ValueError: A value is out of range.
    """

    temperature: Weight = 1.0
    top_k: Codes | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0 (0 is greedy), not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or null for all codes, not {self.top_k}")

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Sample indices [R] from logits [R, V] by inverting the distribution at ``uniform`` [R, 1] in [0, 1)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits / self.temperature
        if self.top_k is None or self.top_k >= logits.shape[-1]:
            return _invert(logits, uniform)
        logits, index = logits.topk(self.top_k, -1, sorted=False)
        return index.gather(1, _invert(logits, uniform).unsqueeze(1)).squeeze(1)


def _invert(logits: Tensor, uniform: Tensor) -> Tensor:
    chances = logits.softmax(-1)
    if chances.is_cuda and torch.are_deterministic_algorithms_enabled():
        # Deterministic mode has no float cumsum on CUDA. Sums of integers do not depend on their order.
        cumulative = (chances.double() * FIXED_POINT).long().cumsum(-1).double()
    else:
        cumulative = chances.cumsum(-1)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
    return index.clamp_(max=logits.shape[-1] - 1)  # rounding may give an index beyond the last


class _Matrix:
    """A weight [outputs, inputs] in the decoding type, packed in blocks for a CPU's bfloat16 kernels if it has them.

    Otherwise these kernels pack the weight again for every token, which takes a third of the time.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        weight = weight.detach().to(dtype, copy=True)
        self.packed = weight.device.type == "cpu" and dtype == torch.bfloat16 and has_bfloat16_kernels()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [..., inputs], float32 or of the decoding type, to [..., outputs] of the decoding type."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, None, "none", [], "")
        return F.linear(x.to(self.weight.dtype), self.weight)


class _Layer:
    """Weights of one layer in the decoding type, with the norms' weights multiplied in."""

    @torch.no_grad()
    def __init__(self, layer: DecoderLayer, heads: int, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        norm, mlp_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        queries_keys = [_paired(proj.weight, heads) for proj in (attention.q_proj, attention.k_proj)]
        self.dtype = dtype
        self.qkv = _Matrix(torch.cat([*queries_keys, attention.v_proj.weight]) * norm, dtype)
        self.out = _Matrix(attention.o_proj.weight, dtype)
        self.gate_up = _Matrix(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * mlp_norm, dtype)
        self.down = _Matrix(mlp.down_proj.weight, dtype)

    def project(self, x: Tensor, turn: Tensor) -> Tensor:
        """Queries, keys and values [..., 3, h, d] from the residual stream [..., D] and `turn` [..., 3, 1, d/2]."""
        qkv = self.qkv(_normalise(x)).float()
        pairs = torch.view_as_complex(qkv.view(*x.shape[:-1], 3, -1, turn.shape[-1], 2))
        return torch.view_as_real(pairs * turn).flatten(-2).to(self.dtype)

    def feed(self, x: Tensor, attended: Tensor) -> Tensor:
        """Layer output from the residual stream [..., D], changed in place, and the attention output [..., D]."""
        x = x.add_(self.out(attended))
        gate, up = self.gate_up(_normalise(x)).chunk(2, -1)
        return x.add_(self.down(F.silu(gate).mul_(up)))


def _paired(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key weight [D, D]: rotary pairs (i, i + d/2) of a head become neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _normalise(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension."""
    return F.rms_norm(x, x.shape[-1:], None, NORM_EPS)


class CachedDecoder:
    """Snapshot of a transformer for rollouts: encodes a context once, then decodes by tokens or by whole frames.

    Args:
        transformer: its weights are copied; later updates of it do not change this decoder.
        dtype: type of the matrix products, keys and values; the residual stream and the norms stay float32.
        dropout: attention dropout while decoding; above 0 only for a published defect, see PublishedDefects.
    """

    def __init__(self, transformer: VideoTransformer, dtype: torch.dtype, dropout: float = 0.0) -> None:
        decoder, self.layout = transformer.llm.model, transformer.layout
        self.heads, self.dropout, self.dtype = transformer.heads, dropout, dtype
        self.embedding = decoder.embed_tokens.weight.detach().clone().float()
        self.turn = _turns(transformer.cos, transformer.sin)
        layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self.layers = [_Layer(layer, self.heads, dtype) for layer in layers]
        self.norm = decoder.norm.weight.detach().clone().float()
        head = transformer.llm.lm_head.weight.detach() * self.norm
        self.any_head = _Matrix(head, dtype)
        self.code_head = _Matrix(head[self.layout.context_codes : self.layout.separator], dtype)
        self.frame_heads, self.condition_tokens = copy.deepcopy(transformer.frame_heads), transformer.condition_tokens
        self.queries = copy.deepcopy(transformer.queries)

    @property
    def parallel(self) -> bool:
        """Whether the tokens of a frame are predicted together."""
        return self.queries is not None

    @torch.no_grad()
    def encode(self, tokens: Tensor, frames: int) -> KeyValueCache:
        """Encode a context.

        Args:
            tokens: int64 [B, P] of the context.
            frames: number of imagined frames that the cache gets room for.
        """
        x = F.embedding(tokens, self.embedding)  # [B, P, D]
        batch, length, width = x.shape
        cache = KeyValueCache.allocate(
            len(self.layers),
            batch,
            self.heads,
            width // self.heads,
            prefix=length,
            room=frames * self.layout.stride,
            like=x.new_empty(0, dtype=self.dtype),
        )
        rows = max(CACHED_TOKENS // length, 1) if x.device.type == "cpu" else batch
        for first in range(0, batch, rows):
            self._encode_rows(x[first : first + rows], cache, slice(first, first + rows))
        return cache

    def _encode_rows(self, x: Tensor, cache: KeyValueCache, rows: slice) -> None:
        """Write keys and values of embeddings [b, P, D], changed in place, into the cache's ``rows``."""
        turn = self.turn[: x.shape[1]]
        for index, layer in enumerate(self.layers):
            q, k, v = layer.project(x, turn).permute(2, 0, 3, 1, 4)  # [b, h, P, d]
            cache.prefix_keys[index, rows], cache.prefix_values[index, rows] = k, v
            if index + 1 < len(self.layers):  # the last layer's output for the context is not used
                k, v = cache.prefix_keys[index, rows], cache.prefix_values[index, rows]
                attended = causal_attention(q.contiguous(), k, v, self.dropout, scale=1.0)
                x = layer.feed(x, attended.transpose(1, 2).flatten(2))

    def slot(self, rows: int, conditioning: Tensor | None) -> Tensor:
        """Embedding of a slot [R, 1, D] with its conditioning [R, D] (Heads.condition)."""
        x = self.embedding[self.layout.slot].repeat(rows, 1, 1)
        return x if conditioning is None else x.add_(conditioning.unsqueeze(1))

    def token(self, tokens: Tensor, conditioning: Tensor | None) -> Tensor:
        """Embeddings [R, 1, D] of dynamics tokens [R] of a frame with conditioning [R, D]."""
        x = F.embedding(tokens.unsqueeze(1), self.embedding)
        return x.add_(conditioning.unsqueeze(1)) if conditioning is not None and self.condition_tokens else x

    def frame(self, rows: int, previous: Tensor | None, conditioning: Tensor | None) -> Tensor:
        """Slot and queries [R, n + 1, D] of a frame with conditioning [R, D], for parallel decoding.

        Args:
            previous: tokens int64 [R, n] of the frame before it; None for the first after the context.
        """
        assert self.queries is not None
        queries = self.queries.start(rows)
        if previous is not None:
            queries = self.queries.after(F.embedding(previous, self.embedding))
        if conditioning is not None and self.condition_tokens:
            queries = queries + conditioning.unsqueeze(1)
        return torch.cat([self.slot(rows, conditioning), queries], 1)

    def logits(self, hidden: Tensor, any_token: bool) -> Tensor:
        """Logits float32 [..., V] of normalised states [..., D], over the dynamics codes or over all tokens."""
        head = self.any_head if any_token else self.code_head
        return head(hidden).float()

    def advance(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """Normalised states [R, q, D] of the next q tokens, which are appended to the cache.

        Their embeddings `x` [R, q, D] are changed in place. The q tokens attend to one another.
        """
        states = self.pass_through(x, cache, cache.places(x.shape[1]))
        cache.filled += x.shape[1]
        return states

    def pass_through(self, x: Tensor, cache: KeyValueCache, places: Tensor) -> Tensor:
        """As `advance`, for tokens at ``places`` int64 [q] of the cache, whose `filled` does not change.

        The launched kernels depend on shapes alone, so that a CUDA graph can capture them.
        """
        turn = self.turn.index_select(0, places + cache.prefix_keys.shape[3])
        for index, layer in enumerate(self.layers):
            attended = cache.attend(index, layer.project(x, turn), places, self.dropout)
            x = layer.feed(x, attended.flatten(2))
        return _normalise(x)

    def tensors(self) -> list[Tensor]:
        """Tensors of the snapshot that `pass_through`, `logits` and the frames' hidden states depend on."""
        matrices = [m for layer in self.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        matrices += [self.any_head, self.code_head]
        return [self.turn, self.norm, *(matrix.weight for matrix in matrices)]


def _turns(cos: Tensor, sin: Tensor) -> Tensor:
    """Complex factors [positions, 3, 1, d/2] of a token's queries, keys and values, from the rotary table.

    They rotate queries and scale them by d^-0.5, rotate keys, and leave values unchanged.
    """
    half = cos.shape[1] // 2
    turn = torch.complex(cos[:, :half].float(), sin[:, :half].float())
    return torch.stack([turn * cos.shape[1] ** -0.5, turn, torch.ones_like(turn)], 1).unsqueeze(2)
