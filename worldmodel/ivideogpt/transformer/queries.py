"""Parallel decoding: all tokens of a frame are predicted in one pass, from those of the frame before.

Not published: iVideoGPT predicts a frame's tokens one after the other. A future frame keeps the positions ``S2 [n]`` of
the layout, but the inputs at its n token positions are query embeddings: the tokens of the previous frame plus a
position and the action. The queries attend to one another, to the context and to all earlier frames, and each predicts
the token at its own position. So a frame costs one pass instead of n + 1, and unchanged tokens are copied without
attention; in return the tokens of a frame are sampled independently of one another.

B batch, F future frames, n dynamics tokens a frame, D width, L tokens. Related: REM (arXiv 2402.05643).
"""

import torch
from torch import Tensor, nn

from worldmodel.ivideogpt.layout import TokenLayout


class FrameQueries(nn.Module):
    """Query embeddings at the token positions of future frames.

    Args:
        tokens: n. width: D. std: standard deviation of the initial weights.
    """

    def __init__(self, tokens: int, width: int, std: float) -> None:
        super().__init__()
        self.places = nn.Embedding(tokens, width)
        self.first = nn.Parameter(torch.empty(width))  # for the first future frame, which has no tokens before it
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)

    def after(self, tokens: Tensor) -> Tensor:
        """Queries [..., n, D] of the frame after one whose tokens have the embeddings [..., n, D]."""
        return tokens + self.places.weight

    def start(self, rows: int) -> Tensor:
        """Queries [rows, n, D] of the first future frame."""
        return (self.first + self.places.weight).expand(rows, -1, -1)

    def forward(self, embedded: Tensor, layout: TokenLayout) -> Tensor:
        """Replace the tokens of future frames by queries in the embeddings [B, L, D] of a segment."""
        if embedded.shape[1] == layout.prefix:
            return embedded
        context, future = embedded[:, : layout.prefix], embedded[:, layout.prefix :].unflatten(1, (-1, layout.stride))
        slots, tokens = future.split([1, layout.dynamics_tokens], 2)
        queries = torch.cat([self.start(len(embedded)).unsqueeze(1), self.after(tokens[:, :-1])], 1)
        return torch.cat([context, torch.cat([slots, queries], 2).flatten(1, 2)], 1)


def frame_mask(layout: TokenLayout, length: int, like: Tensor) -> Tensor:
    """Attention mask [L, L], -inf or 0: the tokens of a frame attend to one another and to all earlier frames."""
    place = torch.arange(length, device=like.device)
    order = torch.where(place < layout.prefix, place, layout.prefix + (place - layout.prefix) // layout.stride)
    return like.new_zeros(length, length).masked_fill_(order[None] > order[:, None], float("-inf"))
