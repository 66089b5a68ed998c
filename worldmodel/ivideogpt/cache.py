"""Keys and values of one rollout: the context encoded once, then one token at a time.

B rows of context, R = B * forks rows of rollout, h heads, d head width, P context tokens, S room for later
tokens.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.ivideogpt.attention import causal_attention


@dataclass
class KeyValueCache:
    """Context keys and values, shared by all forks of a row, and each fork's own, written in place.

    Attributes:
        prefix_keys, prefix_values: one [B, h, P, d] a layer; never written again, so forks share them.
        keys, values: [layers, R, h, S, d], of which the first ``filled`` places hold tokens.
        forks: rollout rows for each context row; row b * forks + i goes on from context row b.
        filled: tokens after the context.
    """

    prefix_keys: list[Tensor]
    prefix_values: list[Tensor]
    keys: Tensor
    values: Tensor
    forks: int = 1
    filled: int = 0

    @classmethod
    def allocate(cls, layers: int, rows: int, heads: int, room: int, width: int, like: Tensor) -> "KeyValueCache":
        """Room for ``room`` tokens after the context, of the type and device of ``like``."""
        shape = (layers, rows, heads, room, width)
        return cls([], [], like.new_empty(shape), like.new_empty(shape))

    @property
    def position(self) -> int:
        """Index in the segment of the next token."""
        return self.prefix_keys[0].shape[2] + self.filled

    def fork(self, n: int) -> "KeyValueCache":
        """A cache of R * n rows over the same context tensors; tokens after the context are copied."""
        layers, rows, heads, room, width = self.keys.shape
        own = [x.new_empty(layers, rows * n, heads, room, width) for x in (self.keys, self.values)]
        for new, old in zip(own, (self.keys, self.values), strict=True):
            new[:, :, :, : self.filled] = old[:, :, :, : self.filled].repeat_interleave(n, 1)
        return replace(self, keys=own[0], values=own[1], forks=self.forks * n)

    def attend_context(self, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype, dropout: float) -> Tensor:
        """Store the next layer's context keys and values [B, h, P, d]; causal attention over them, in ``dtype``."""
        self.prefix_keys.append(k.contiguous())
        self.prefix_values.append(v.contiguous())
        return causal_attention(q.to(dtype), k.to(dtype), v.to(dtype), dropout)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Write one token's key and value [R, h, d] in place, and attend to everything up to it.

        The context part of the scores is one product for all forks of a row, so their context is read once.

        Returns:
            [R, h, d].
        """
        end = self.filled + 1
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.filled], values[:, :, self.filled] = k, v
        q = q * q.shape[-1] ** -0.5
        shared = q.unflatten(0, (-1, self.forks)).transpose(1, 2)  # [B, h, forks, d]
        context = torch.matmul(shared, self.prefix_keys[layer].transpose(-1, -2))  # [B, h, forks, P]
        own = torch.matmul(q.unsqueeze(2), keys[:, :, :end].transpose(-1, -2))  # [R, h, 1, end]
        places = context.shape[-1]
        scores = torch.cat([context.transpose(1, 2).flatten(0, 1), own.squeeze(2)], -1)
        scores = scores.softmax(-1)  # [R, h, P + end]
        if dropout:
            scores = F.dropout(scores, dropout)
        weights = scores[..., :places].unflatten(0, (-1, self.forks)).transpose(1, 2)
        out = torch.matmul(weights, self.prefix_values[layer]).transpose(1, 2).flatten(0, 1)  # [R, h, d]
        return out + torch.matmul(scores[..., places:].unsqueeze(2), values[:, :, :end]).squeeze(2)
