"""The tokenizer's four nets: encoder and decoder, plain for context frames and conditional for future frames.

Legend: B batch, C context frames, F future frames, W channels, S side of a map, L levels (entries of `widths`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.ivideogpt.tokenizer.layers import EPS, CrossAttention, DownBlock, KeysValues, MidBlock, UpBlock


@dataclass(frozen=True)
class NetSizes:
    """Sizes that all four nets share.

    `side` is that of the first level (the frame's, or less by the stem's factor), `latent_side` that of the last.
    """

    side: int
    widths: tuple[int, ...]
    layers: int
    groups: int
    pixel_channels: int
    latent_channels: int

    @property
    def latent_side(self) -> int:
        return self.side >> (len(self.widths) - 1)


@dataclass(frozen=True)
class CrossSizes:
    """Sizes of the cross-attention, which stands wherever a map's side is at most `max_side`."""

    context_length: int
    max_side: int
    groups: int
    heads: int
    dropout: float

    def block(self, width: int, side: int) -> CrossAttention:
        return CrossAttention(
            width,
            side,
            context_length=self.context_length,
            groups=self.groups,
            heads=self.heads,
            dropout=self.dropout,
        )


def _project(
    levels: Sequence[int], blocks: nn.ModuleList, maps: Sequence[Tensor], context_length: int
) -> list[KeysValues]:
    """Keys and values for each level that attends, from the context's maps [B*C, W, S, S] of all levels."""
    made = []
    for level, block in zip(levels, blocks, strict=True):
        assert isinstance(block, CrossAttention)
        made.append(block.project(maps[level].unflatten(0, (-1, context_length))))
    return made


class Encoder(nn.Module):
    """Frames [B, 3, S, S] -> latents; with `cross`, frames that are seen in the light of their context."""

    def __init__(self, sizes: NetSizes, *, mid_attention: bool, cross: CrossSizes | None = None) -> None:
        super().__init__()
        widths, last = sizes.widths, len(sizes.widths) - 1
        self.conv_in = nn.Conv2d(sizes.pixel_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(i - 1, 0)], widths[i], sizes.layers, sizes.groups, resize=i < last)
            for i in range(last + 1)
        )
        self.mid_block = MidBlock(widths[last], sizes.groups, mid_attention)
        self.conv_norm_out = nn.GroupNorm(sizes.groups, widths[last], eps=EPS)
        self.conv_out = nn.Conv2d(widths[last], sizes.latent_channels, 3, padding=1)
        # Level i's output has this side; `attended` are the levels whose output looks at the context.
        sides = [sizes.side >> min(i + 1, last) for i in range(last + 1)]
        self.attended = [] if cross is None else [i for i, side in enumerate(sides) if side <= cross.max_side]
        if cross is not None:
            self.cross_att_blocks = nn.ModuleList(cross.block(widths[i], sides[i]) for i in self.attended)

    def forward(self, x: Tensor, context: Sequence[KeysValues] = ()) -> tuple[Tensor, list[Tensor]]:
        """-> (latents [B, latent_channels, S, S], the maps after each of the L levels)."""
        x, maps = self.conv_in(x), []
        for i, block in enumerate(self.down_blocks):
            x = block(x)
            if i in self.attended:
                j = self.attended.index(i)
                x = self.cross_att_blocks[j](x, context[j])
            maps.append(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x))), maps

    def project(self, maps: Sequence[Tensor], context_length: int) -> list[KeysValues]:
        """Keys and values for `context` from the maps [B*C, W, S, S] that the context's encoder handed out."""
        return _project(self.attended, self.cross_att_blocks, maps, context_length)


class Decoder(nn.Module):
    """Latents -> frames; with `cross`, frames that take what they can from their context."""

    def __init__(self, sizes: NetSizes, *, mid_attention: bool, cross: CrossSizes | None = None) -> None:
        super().__init__()
        widths, last = sizes.widths[::-1], len(sizes.widths) - 1
        self.conv_in = nn.Conv2d(sizes.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], sizes.groups, mid_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(i - 1, 0)], widths[i], sizes.layers + 1, sizes.groups, resize=i < last)
            for i in range(last + 1)
        )
        self.conv_norm_out = nn.GroupNorm(sizes.groups, widths[last], eps=EPS)
        self.conv_out = nn.Conv2d(widths[last], sizes.pixel_channels, 3, padding=1)
        # Stage 0 is the middle block, stage i + 1 level i. The first always looks at the context, as published.
        places = [(widths[0], sizes.latent_side)]
        places += [(widths[i], sizes.latent_side << min(i + 1, last)) for i in range(last + 1)]
        self.attended = []
        if cross is not None:
            self.attended = [i for i, (_, side) in enumerate(places) if i == 0 or side <= cross.max_side]
            self.cross_att_blocks = nn.ModuleList(cross.block(*places[i]) for i in self.attended)

    def forward(self, x: Tensor, context: Sequence[KeysValues] = ()) -> tuple[Tensor, list[Tensor]]:
        """-> (frames [B, 3, S, S], the maps after the middle block and after each of the L levels)."""
        maps = self.maps(x, len(self.up_blocks), context)
        return self.conv_out(F.silu(self.conv_norm_out(maps[-1]))), maps

    def maps(self, x: Tensor, last: int, context: Sequence[KeysValues] = ()) -> list[Tensor]:
        """The maps after the middle block (stage 0) and after each level up to stage `last`."""
        # Latents are made of tokens, channels last, and a CPU's group norm is 9 times as slow on such maps in bfloat16.
        x, maps = self.conv_in(x.contiguous()), []
        for i, block in enumerate((self.mid_block, *self.up_blocks[:last])):
            x = block(x)
            if i in self.attended:
                j = self.attended.index(i)
                x = self.cross_att_blocks[j](x, context[j])
            maps.append(x)
        return maps

    def project(self, maps: Sequence[Tensor], context_length: int) -> list[KeysValues]:
        """Keys and values for `context` from the maps [B*C, W, S, S] that the context's decoder handed out."""
        return _project(self.attended, self.cross_att_blocks, maps, context_length)


def latent_side(resolution: int, levels: int, stem_patch: int, patch: int) -> int:
    """Side of the latent grid; ValueError where the sizes do not fit together."""
    if min(resolution, levels, stem_patch, patch) < 1:
        raise ValueError(f"sizes must be positive, not {resolution=}, {levels=}, {stem_patch=}, {patch=}")
    shrink = stem_patch * 2 ** (levels - 1)
    if resolution % (shrink * patch):
        step = shrink * patch
        nearest = max(round(resolution / step), 1) * step
        raise ValueError(
            f"resolution {resolution} does not divide into {patch}x{patch} patches of latents 1/{shrink} its size: "
            f"choose a multiple of {step}, such as {nearest}"
        )
    return resolution // shrink


def check_widths(sizes: NetSizes, cross: CrossSizes) -> None:
    """ValueError where a count is not positive, or a width cannot be divided into groups or heads."""
    counts = {"layers_per_block": sizes.layers, "latent_channels": sizes.latent_channels, "levels": len(sizes.widths)}
    divisors = {"norm_groups": sizes.groups, "cross_norm_groups": cross.groups, "attention_heads": cross.heads}
    for name, count in {**counts, **divisors, "context_length": cross.context_length}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    for level, width in enumerate(sizes.widths):
        attended = level == len(sizes.widths) - 1 or sizes.side >> (level + 1) <= cross.max_side
        for name, parts in divisors.items():
            if (name == "norm_groups" or attended) and (width < 1 or width % parts):
                raise ValueError(f"block_out_channels {width} is not divisible by {name} {parts}")
