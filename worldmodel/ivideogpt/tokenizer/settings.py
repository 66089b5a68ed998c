"""Groups of settings of the tokenizer. The defaults are those of the published model for 64x64 pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

from worldmodel.ranges import Codes, Count, Number, Scale, ShareBelowOne, Side, Weight, Width


@dataclass(frozen=True)
class AutoencoderSizes:
    """Sizes of the four convolutional nets.

    Args:
        block_out_channels: Channels of each level. The side of the maps halves from each level to the next.
        layers_per_block: Residual blocks of a level in the encoders. The decoders have one more.
        latent_channels: Channels of the latents before quantisation.
        norm_groups: Groups of the group norms. Each number of channels must be a multiple of it.
        stem_patch: Side of the pixel blocks that are folded into channels before the first convolution and unfolded
            after the last. 1 is the published model; more makes the nets smaller and faster.

    Raises:
        ValueError: A size is less than 1.
    """

    block_out_channels: Sequence[Width] = (128, 256, 512)
    layers_per_block: Number = 2
    latent_channels: Width = 64
    norm_groups: Number = 32
    stem_patch: Side = 1

    def __post_init__(self) -> None:
        # A configuration's list becomes a tuple, so that settings can be compared and written as JSON.
        object.__setattr__(self, "block_out_channels", tuple(int(width) for width in self.block_out_channels))
        if not self.block_out_channels:
            raise ValueError("tokenizer.autoencoder.block_out_channels is empty: give the channels of 1 level or more")
        sizes = {name: getattr(self, name) for name in ("layers_per_block", "latent_channels", "norm_groups")}
        _check_positive("autoencoder", {**sizes, "stem_patch": self.stem_patch})


@dataclass(frozen=True)
class CrossAttentionSizes:
    """Sizes of the cross-attention from future frames to context frames.

    Args:
        max_resolution: Largest side of the maps that attend to the context.
        norm_groups: Groups of the group norms of queries and keys. The published code always has 32.
        heads: Attention heads. The published code always has 4.
        dropout: Dropout probability of the attention weights and of the output, in [0, 1).

    Raises:
        ValueError: norm_groups or heads is less than 1.
    """

    max_resolution: Side = 16
    norm_groups: Number = 32
    heads: Number = 4
    dropout: ShareBelowOne = 0.1

    def __post_init__(self) -> None:
        _check_positive("cross_attention", {"norm_groups": self.norm_groups, "heads": self.heads})


@dataclass(frozen=True)
class MovingAverage:
    """Codebook entries that follow a running mean of the latents assigned to them, instead of the codebook loss.

    For training from scratch in a few hundred updates: gradient steps on the codebook loss, one learning rate each,
    cannot follow an encoder that still changes fast (arXiv 2005.08520).

    Args:
        decay: Decay of the running means per training batch, in [0, 1).
        revive_below: Replace a code by a random latent of the training batch when its share of the assignments, as a
            running mean, is below this fraction of the uniform share, in [0, 1). 0 never replaces a code. A new
            codebook counts as unused, so that the first quantised training batch seeds it.
        warmup: Number of first training batches that are not quantised. The encoder then learns a representation before
            the codebook is seeded. If they are quantised from the start, latents collapse onto a few codes.

    Raises:
        ValueError: A value is out of range, or there is a warm-up without revival, which seeds the codebook.
    """

    decay: ShareBelowOne = 0.99
    revive_below: ShareBelowOne = 0.0
    warmup: Count = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.revive_below < 1.0 or not 0.0 <= self.decay < 1.0:
            raise ValueError(
                "tokenizer.codebooks.moving_average: revive_below and decay must be in [0, 1), not "
                f"{self.revive_below} and {self.decay}"
            )
        if self.warmup and self.revive_below == 0.0:
            raise ValueError(
                f"tokenizer.codebooks.moving_average: warmup ({self.warmup}) needs revive_below > 0, which seeds the "
                "codebook from data"
            )


@dataclass(frozen=True)
class Codebooks:
    """The two codebooks, of context frames and of future frames.

    Args:
        context_codes: Codes for context frames.
        dynamics_codes: Codes for future frames.
        code_dim: D, width of a code. None: latent_channels, as published.
        commitment: Weight of the commitment loss.
        moving_average: How codes follow their latents. None: by the codebook loss, as published.
    """

    context_codes: Codes = 8192
    dynamics_codes: Codes = 8192
    code_dim: Width | None = None
    commitment: Weight = 1.0
    moving_average: MovingAverage | None = None


@dataclass(frozen=True)
class StaticScene:
    """Settings for a fixed camera; the published model has none of them.

    Args:
        background_batches: Number of first training batches whose mean image becomes the background. The nets then
            encode and decode the deviation from it, so that they need not learn the scene. 0: no background.
        copy_gate: The decoder of future frames also predicts, for each pixel, whether to copy the last context frame.
    """

    background_batches: Count = 0
    copy_gate: bool = False


@dataclass(frozen=True)
class TokenizerLoss:
    """Weights of the reconstruction loss. The default is the published loss.

    Args:
        motion_weight: Extra weight of pixels that differ from the last context frame, and from a background. 0 weights
            all pixels equally. See losses.motion_weights.
        motion_scale: Least difference in colour, in [0, 1], at which a pixel has the full extra weight.
        squared_weight: Weight of the squared error beside the absolute error. See losses.weighted_error.
        perceptual_weight: Weight of the perceptual loss, if there is one (TrainingPlan.perceptual).
    """

    motion_weight: Weight = 0.0
    motion_scale: Scale = 0.1
    squared_weight: Weight = 0.0
    perceptual_weight: Weight = 1.0


def _check_positive(group: str, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"tokenizer.{group}.{name} must be at least 1, not {size}")
