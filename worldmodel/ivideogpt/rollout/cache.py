"""KV cache of a rollout: the context is encoded once, then one token or one frame is appended at a time.

B rows of context, R = B * forks rows of rollout, h heads, d head width, P context tokens, S places for later
tokens, q tokens at a time.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class KeyValueCache:
    """Keys and values of the context, shared by all forks of a row, and of later tokens, separate for each fork.

    The latter are written in place.

    Attributes:
        prefix_keys, prefix_values: [layers, B, h, P, d]; never written after the context, so forks share them.
        own: [layers, 2, R, h, S, d], keys and values of later tokens. The first ``filled`` places hold tokens, the
            others zeros.
        future: [S, S], 0 up to the diagonal and -inf beyond: row i masks the places after the i-th.
        forks: rollout rows for each context row; row b * forks + i continues context row b.
        filled: number of tokens after the context.
    """

    prefix_keys: Tensor
    prefix_values: Tensor
    own: Tensor
    future: Tensor
    forks: int = 1
    filled: int = 0

    @classmethod
    def allocate(
        cls, layers: int, rows: int, heads: int, width: int, *, prefix: int, room: int, like: Tensor
    ) -> "KeyValueCache":
        """Allocate ``prefix`` context tokens and ``room`` later tokens, with the type and device of ``like``."""
        context = (layers, rows, heads, prefix, width)
        # Zeros, because a masked place has weight 0, and 0 times uninitialised memory may be nan.
        own = like.new_zeros(layers, 2, rows, heads, room, width)
        future = like.new_full((room, room), float("-inf")).triu(1)
        return cls(like.new_empty(context), like.new_empty(context), own, future)

    @property
    def keys(self) -> Tensor:
        """Keys of later tokens [layers, R, h, S, d]."""
        return self.own[:, 0]

    def places(self, count: int) -> Tensor:
        """Indices int64 of the next ``count`` places; a tensor on the cache's device, as input of a CUDA graph."""
        return torch.arange(self.filled, self.filled + count, device=self.own.device)

    def fork(self, n: int) -> "KeyValueCache":
        """Copy each row n times: R * n rows share the context tensors; later tokens are copied."""
        return replace(self, own=self.own.repeat_interleave(n, 2), forks=self.forks * n)

    def attend(self, layer: int, qkv: Tensor, places: Tensor, dropout: float) -> Tensor:
        """Write the keys and values of q tokens in place; each token then attends to all up to the last of them.

        The products with the context are batched over the forks of a row, so that their context is read once.

        Args:
            qkv: [R, q, 3, h, d] of the cache's type; the queries are already scaled.
            places: int64 [q], ascending, the places of the tokens.

        Returns:
            [R, q, h, d].
        """
        rows, count, _, heads, width = qkv.shape
        self.own[layer].index_copy_(3, places, qkv[:, :, 1:].permute(2, 0, 3, 1, 4))
        end = self._room if dropout else self._taking_part(places)
        keys, values = self.own[layer, :, :, :, :end].flatten(1, 2)  # [R * h, end, d] each
        query = qkv[:, :, 0].transpose(1, 2).reshape(rows * heads, count, width)
        shared = self._gather(query, heads)  # [B * h, forks * q, d]
        context = torch.bmm(shared, self.prefix_keys[layer].flatten(0, 1).transpose(1, 2))  # [B * h, forks * q, P]
        hidden = self.future.index_select(0, places[-1:])[:, :end]
        later = torch.baddbmm(hidden, query, keys.transpose(1, 2))  # [R * h, q, end]
        weights = torch.cat([self._scatter(context, heads), later], -1).softmax(-1)
        if dropout:
            weights = F.dropout(weights, dropout)
        before, after = weights.split([context.shape[-1], later.shape[-1]], -1)
        found = torch.bmm(self._gather(before, heads), self.prefix_values[layer].flatten(0, 1))
        out = torch.baddbmm(self._scatter(found, heads), after, values)  # [R * h, q, d]
        return out.view(rows, heads, count, width).transpose(1, 2)

    @property
    def _room(self) -> int:
        """S."""
        return self.own.shape[4]

    def _taking_part(self, places: Tensor) -> int:
        """Number of places that the products with tokens at ``places`` int64 [q] include.

        All places, with empty ones masked, if shapes must not change from token to token: a CUDA graph has fixed
        shapes, and bfloat16 kernels are compiled for a shape and copy a slice first. A single token includes all places
        too, because fewer places would change the order of summation.
        """
        if len(places) == 1 or self.own.device.type != "cpu" or self.own.dtype != torch.float32:
            return self._room
        return int(places[-1]) + 1

    def _gather(self, x: Tensor, heads: int) -> Tensor:
        """Join the forks of a row: [R * h, q, m] to [B * h, forks * q, m]."""
        if self.forks == 1:
            return x
        return x.view(-1, self.forks, heads, *x.shape[1:]).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def _scatter(self, x: Tensor, heads: int) -> Tensor:
        """Invert ``_gather``."""
        if self.forks == 1:
            return x
        return x.unflatten(1, (self.forks, -1)).unflatten(0, (-1, heads)).transpose(1, 2).flatten(0, 2)
