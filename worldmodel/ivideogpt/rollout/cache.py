"""Keys and values of one rollout: the context encoded once, then a token, or all places of a frame, at a time.

B rows of context, R = B * forks rows of rollout, h heads, d head width, P context tokens, S room for later
tokens, q tokens at a time.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class KeyValueCache:
    """Context keys and values, shared by all forks of a row, and each fork's own, written in place.

    Attributes:
        prefix_keys, prefix_values: [layers, B, h, P, d]; never written after the context, so forks share them.
        own: [layers, 2, R, h, S, d], keys and values, of which the first ``filled`` places hold tokens and the
            others zeros.
        future: [S, S], 0 up to the diagonal and -inf beyond: row i hides the places after the i-th.
        forks: rollout rows for each context row; row b * forks + i goes on from context row b.
        filled: tokens after the context.
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
        """Places for ``prefix`` context tokens and ``room`` later ones, of the type and device of ``like``."""
        context = (layers, rows, heads, prefix, width)
        # Zeros, because a place that is hidden weighs 0, and 0 times whatever memory holds may be nan.
        own = like.new_zeros(layers, 2, rows, heads, room, width)
        future = like.new_full((room, room), float("-inf")).triu(1)
        return cls(like.new_empty(context), like.new_empty(context), own, future)

    @property
    def keys(self) -> Tensor:
        """The rows' own keys [layers, R, h, S, d]."""
        return self.own[:, 0]

    def places(self, count: int) -> Tensor:
        """The next ``count`` places of own tokens, int64 on the cache's device: a captured graph reads them anew."""
        return torch.arange(self.filled, self.filled + count, device=self.own.device)

    def fork(self, n: int) -> "KeyValueCache":
        """A cache of R * n rows over the same context tensors; tokens after the context are copied."""
        return replace(self, own=self.own.repeat_interleave(n, 2), forks=self.forks * n)

    def attend(self, layer: int, qkv: Tensor, places: Tensor, dropout: float) -> Tensor:
        """Write the keys and values of q tokens in place, and attend from each to all up to the last of them.

        The context's part of the products is one for all forks of a row, so their context is read once.

        Args:
            qkv: [R, q, 3, h, d] of the cache's type; the queries carry the scale of the scores.
            places: int64 [q], ascending, where the tokens go.

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
        """How many of the room's places take part in the products with tokens at ``places`` int64 [q].

        All of them, the empty ones hidden, where shapes must stay the same from token to token: a captured graph
        repeats them, and bfloat16 kernels are made for a shape and copy a slice first. A single token takes all too, as
        its products are added up in another order over fewer places.
        """
        if len(places) == 1 or self.own.device.type != "cpu" or self.own.dtype != torch.float32:
            return self._room
        return int(places[-1]) + 1

    def _gather(self, x: Tensor, heads: int) -> Tensor:
        """[R * h, q, m] to [B * h, forks * q, m]: the forks of a row side by side."""
        if self.forks == 1:
            return x
        return x.view(-1, self.forks, heads, *x.shape[1:]).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def _scatter(self, x: Tensor, heads: int) -> Tensor:
        """The inverse of ``_gather``."""
        if self.forks == 1:
            return x
        return x.unflatten(1, (self.forks, -1)).unflatten(0, (-1, heads)).transpose(1, 2).flatten(0, 2)
