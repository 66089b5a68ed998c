"""Layers of the tokenizer's convolutional nets, with the layout and tensor names of the published weights.

B batch, C context frames, F frames of one row that share its context, W channels, S side of a square map.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.ivideogpt.attention import attention

EPS = 1e-6  # of every group norm of the convolutional blocks; cross-attention keeps torch's 1e-5


class ResnetBlock(nn.Module):
    """Two convolutions with a residual connection: [B, inputs, S, S] -> [B, outputs, S, S]."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve the side: zero padding of one row below and one column to the right, then a convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side: nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SelfAttention(nn.Module):
    """Attention with one head over the positions of a map, with a residual connection."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        h = rows(self.group_norm(x)).unsqueeze(1)  # [B, 1 head, S*S, W]
        h = attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + unrows(self.to_out[0](h.squeeze(1)), x)


class MidBlock(nn.Module):
    """Residual block, optional self-attention, residual block."""

    def __init__(self, width: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, width, groups) for _ in range(2))
        if attention:
            self.attentions = nn.ModuleList([SelfAttention(width, groups)])
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attention:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class DownBlock(nn.Module):
    """Residual blocks of one width; then half the side, except at the last level."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resize: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(layers))
        self.downsamplers = nn.ModuleList([Downsample(outputs)] if resize else [])

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.resnets, *self.downsamplers):
            x = block(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks of one width; then twice the side, except at the last level."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resize: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(layers))
        self.upsamplers = nn.ModuleList([Upsample(outputs)] if resize else [])

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.resnets, *self.upsamplers):
            x = block(x)
        return x


class Projections(nn.Module):
    """Parameters of torch's MultiheadAttention under its names; keys and values can be projected in advance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)


class KeysValues(NamedTuple):
    """Keys and values of the context frames for cross-attention, projected once: both [B, heads, C*S*S, W/heads]."""

    keys: Tensor
    values: Tensor


class CrossAttention(nn.Module):
    """Cross-attention from future frames to context frames: z <- SiLU(z + attention(z, context)).

    All F future frames of a row share its context, so their positions are queries of one attention, and the context is
    neither repeated nor projected again.
    """

    def __init__(self, width: int, side: int, *, context_length: int, groups: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.att = Projections(width)
        self.kv_norm = nn.GroupNorm(groups, width)
        self.q_norm = nn.GroupNorm(groups, width)
        self.kv_pos_emb = nn.Parameter(torch.zeros(context_length * side * side, width))
        self.q_pos_emb = nn.Parameter(torch.zeros(side * side, width))

    def project(self, maps: Tensor) -> KeysValues:
        """Keys and values from the context frames' maps [B, C, W, S, S], stacked vertically."""
        x = rows(self.kv_norm(maps.transpose(1, 2).flatten(2, 3))) + self.kv_pos_emb  # [B, C*S*S, W]
        width = x.shape[-1]
        x = F.linear(x, self.att.in_proj_weight[width:], self.att.in_proj_bias[width:])
        return KeysValues(*(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in x.chunk(2, -1)))

    def forward(self, z: Tensor, context: KeysValues) -> Tensor:
        """z [B*F, W, S, S], the F frames of a row in succession -> the same shape."""
        batch, width = len(context.keys), z.shape[1]
        q = rows(self.q_norm(z)) + self.q_pos_emb  # [B*F, S*S, W]
        q = F.linear(q, self.att.in_proj_weight[:width], self.att.in_proj_bias[:width])
        q = q.reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2)  # [B, heads, F*S*S, W/heads]
        dropout = self.dropout if self.training else 0.0
        found = attention(q, context.keys, context.values, dropout)
        found = self.att.out_proj(found.transpose(1, 2).reshape(len(z), -1, width))
        return F.silu(z + unrows(F.dropout(found, self.dropout, self.training), z))


def rows(maps: Tensor) -> Tensor:
    """[B, W, S, S'] -> [B, S*S', W]."""
    return maps.flatten(2).transpose(1, 2)


def unrows(x: Tensor, like: Tensor) -> Tensor:
    """[B, S*S', W] -> the shape of the maps `like` [B, W, S, S']."""
    return x.transpose(1, 2).reshape(like.shape)


def fold(maps: Tensor, side: int) -> Tensor:
    """[B, W, S, S'] -> [B, W*side^2, S/side, S'/side], as F.pixel_unshuffle, which takes 3 times as long on a CPU."""
    if side == 1:
        return maps
    blocks = maps.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, W, S/side, side, S'/side, side]
    return blocks.permute(0, 1, 3, 5, 2, 4).reshape(len(maps), -1, *blocks.shape[2:5:2])


def unfold(maps: Tensor, side: int) -> Tensor:
    """The inverse of ``fold``, as F.pixel_shuffle."""
    if side == 1:
        return maps
    blocks = maps.unflatten(1, (-1, side, side)).permute(0, 1, 4, 2, 5, 3)  # [B, W, S, side, S', side]
    return blocks.flatten(4, 5).flatten(2, 3)
