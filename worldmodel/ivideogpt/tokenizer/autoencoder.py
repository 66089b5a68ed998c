"""Four nets of the tokenizer: encoder and decoder of context frames, and conditional ones of future frames.

The conditional nets attend to the maps of the context nets, and have self-attention in the middle block. The context
nets have neither, as published.

Dimensions: B batch, C context frames, F future frames, W channels, S side of a map, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.ivideogpt.tokenizer.layers import EPS, CrossAttention, DownBlock, KeysValues, MidBlock, UpBlock
from worldmodel.ivideogpt.tokenizer.settings import AutoencoderSizes, CrossAttentionSizes


@dataclass(frozen=True)
class NetSizes:
    """Sizes of one net.

    Args:
        side: Side of the maps of the first level: side of the frames / side of a stem patch.
        pixel_channels: Channels of the folded frames, which are its input or output.
        autoencoder: Sizes that all four nets share.
    """

    side: int
    pixel_channels: int
    autoencoder: AutoencoderSizes

    @property
    def latent_side(self) -> int:
        """Side of the maps of the last level."""
        return self.side >> (len(self.autoencoder.block_out_channels) - 1)


@dataclass(frozen=True)
class CrossSizes:
    """Sizes of the cross-attention of one net.

    Args:
        context_length: C.
        attention: The other sizes.
    """

    context_length: int
    attention: CrossAttentionSizes

    def attends(self, side: int) -> bool:
        """Whether maps of this side attend to the context."""
        return side <= self.attention.max_resolution

    def block(self, width: int, side: int) -> CrossAttention:
        """Make the block for maps of this width and side."""
        return CrossAttention(
            width,
            side,
            context_length=self.context_length,
            groups=self.attention.norm_groups,
            heads=self.attention.heads,
            dropout=self.attention.dropout,
        )


def _project(
    levels: Sequence[int], blocks: nn.ModuleList, maps: Sequence[Tensor], context_length: int
) -> list[KeysValues]:
    """Keys and values for each attended level, from the context's maps [B*C, W, S, S] of all levels."""
    made = []
    for level, block in zip(levels, blocks, strict=True):
        assert isinstance(block, CrossAttention)
        made.append(block.project(maps[level].unflatten(0, (-1, context_length))))
    return made


class Encoder(nn.Module):
    """Encodes folded frames [B, pixel_channels, S, S] to latents.

    Args:
        sizes: Sizes of the net.
        cross: Sizes of the cross-attention to the context. None: the net of the context frames.
    """

    def __init__(self, sizes: NetSizes, cross: CrossSizes | None = None) -> None:
        super().__init__()
        net, widths = sizes.autoencoder, sizes.autoencoder.block_out_channels
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(sizes.pixel_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(i - 1, 0)], widths[i], net.layers_per_block, net.norm_groups, resize=i < last)
            for i in range(last + 1)
        )
        self.mid_block = MidBlock(widths[last], net.norm_groups, attention=cross is not None)
        self.conv_norm_out = nn.GroupNorm(net.norm_groups, widths[last], eps=EPS)
        self.conv_out = nn.Conv2d(widths[last], net.latent_channels, 3, padding=1)
        # Sides of the outputs of the levels; `attended` are the levels whose outputs attend to the context.
        sides = [sizes.side >> min(i + 1, last) for i in range(last + 1)]
        self.attended = [] if cross is None else [i for i, side in enumerate(sides) if cross.attends(side)]
        if cross is not None:
            self.cross_att_blocks = nn.ModuleList(cross.block(widths[i], sides[i]) for i in self.attended)

    def forward(self, x: Tensor, context: Sequence[KeysValues] = ()) -> tuple[Tensor, list[Tensor]]:
        """Encode.

        Args:
            x: Folded frames [B, pixel_channels, S, S].
            context: Keys and values for each attended level; empty for the net of the context frames.

        Returns:
            Latents [B, latent_channels, S, S], and the maps after each of the L levels.
        """
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
        """Keys and values for `context`, from the maps [B*C, W, S, S] of the encoder of the context frames."""
        return _project(self.attended, self.cross_att_blocks, maps, context_length)


class Decoder(nn.Module):
    """Decodes latents to folded frames.

    Args:
        sizes: Sizes of the net.
        cross: Sizes of the cross-attention to the context. None: the net of the context frames.
    """

    def __init__(self, sizes: NetSizes, cross: CrossSizes | None = None) -> None:
        super().__init__()
        net, widths = sizes.autoencoder, sizes.autoencoder.block_out_channels[::-1]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(net.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], net.norm_groups, attention=cross is not None)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(i - 1, 0)], widths[i], net.layers_per_block + 1, net.norm_groups, resize=i < last)
            for i in range(last + 1)
        )
        self.conv_norm_out = nn.GroupNorm(net.norm_groups, widths[last], eps=EPS)
        self.conv_out = nn.Conv2d(widths[last], sizes.pixel_channels, 3, padding=1)
        # Stage 0 is the middle block, stage i + 1 is level i. The middle block always attends, as published.
        places = [(widths[0], sizes.latent_side)]
        places += [(widths[i], sizes.latent_side << min(i + 1, last)) for i in range(last + 1)]
        self.attended = []
        if cross is not None:
            self.attended = [i for i, (_, side) in enumerate(places) if i == 0 or cross.attends(side)]
            self.cross_att_blocks = nn.ModuleList(cross.block(*places[i]) for i in self.attended)

    def forward(self, x: Tensor, context: Sequence[KeysValues] = ()) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            x: Latents [B, latent_channels, S, S].
            context: Keys and values for each attended stage; empty for the net of the context frames.

        Returns:
            Folded frames [B, pixel_channels, S, S], and the maps after the middle block and each of the L levels.
        """
        maps = self.maps(x, len(self.up_blocks), context)
        return self.conv_out(F.silu(self.conv_norm_out(maps[-1]))), maps

    def maps(self, x: Tensor, last: int, context: Sequence[KeysValues] = ()) -> list[Tensor]:
        """The maps after the middle block (stage 0) and after each level up to stage `last`."""
        # Latents come from tokens, channels last. On a CPU a group norm of such maps in bfloat16 is 9 times slower.
        x, maps = self.conv_in(x.contiguous()), []
        for i, block in enumerate((self.mid_block, *self.up_blocks[:last])):
            x = block(x)
            if i in self.attended:
                j = self.attended.index(i)
                x = self.cross_att_blocks[j](x, context[j])
            maps.append(x)
        return maps

    def project(self, maps: Sequence[Tensor], context_length: int) -> list[KeysValues]:
        """Keys and values for `context`, from the maps [B*C, W, S, S] of the decoder of the context frames."""
        return _project(self.attended, self.cross_att_blocks, maps, context_length)


def latent_side(resolution: int, sizes: AutoencoderSizes, patch: int) -> int:
    """Side of the latent grid.

    Args:
        resolution: R.
        sizes: Sizes of the nets.
        patch: Side in latents of the patch that one dynamics token encodes.

    Raises:
        ValueError: The frames do not divide into patches.
    """
    if min(resolution, patch) < 1:
        raise ValueError(f"tokenizer.resolution and tokenizer.patch must be positive, not {resolution} and {patch}")
    shrink = sizes.stem_patch * 2 ** (len(sizes.block_out_channels) - 1)
    if resolution % (shrink * patch):
        step = shrink * patch
        nearest = max(round(resolution / step), 1) * step
        raise ValueError(
            f"tokenizer.resolution {resolution} does not divide into {patch}x{patch} patches of latents 1/{shrink} its "
            f"size: set a multiple of {step}, such as tokenizer.resolution={nearest}"
        )
    return resolution // shrink


def check_widths(sizes: NetSizes, cross: CrossSizes) -> None:
    """Check that the channels of each level divide into groups and heads.

    Raises:
        ValueError: They do not, or there is no context frame.
    """
    if cross.context_length < 1:
        raise ValueError(f"tokenizer.context_length must be at least 1, not {cross.context_length}")
    widths, attention = sizes.autoencoder.block_out_channels, cross.attention
    everywhere = {"autoencoder.norm_groups": sizes.autoencoder.norm_groups}
    attended = everywhere | {"cross_attention.norm_groups": attention.norm_groups}
    attended["cross_attention.heads"] = attention.heads
    for level, width in enumerate(widths):
        attends = level == len(widths) - 1 or cross.attends(sizes.side >> (level + 1))
        for name, parts in (attended if attends else everywhere).items():
            if width < 1 or width % parts:
                raise ValueError(
                    f"tokenizer.autoencoder.block_out_channels: {width} is not divisible by tokenizer.{name} {parts}"
                )
