"""The compressive tokenizer: context frames in full, future frames as the little that they change.

Legend: B batch, T frames of a segment, C context frames, F future frames, R resolution, N context tokens per frame,
n dynamics tokens per frame, D code width. Source: iVideoGPT, arXiv 2405.15223, section 3.1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.processes import mean_over_processes
from worldmodel.ivideogpt.tokenizer.autoencoder import CrossSizes, Decoder, Encoder, NetSizes, check_widths, latent_side
from worldmodel.ivideogpt.tokenizer.layers import KeysValues, fold, unfold
from worldmodel.ivideogpt.tokenizer.quantizer import Quantized, VectorQuantizer

CONTRAST = 4.0  # of deviations from the background, whose standard deviation is about a quarter where things move


@dataclass(frozen=True)
class Context:
    """What a conditional net needs to know of B rows of context frames; made once, used for every future frame."""

    attention: tuple[KeysValues, ...]  # one for each of the net's cross-attention blocks
    frames: Tensor  # [B, C, 3, R, R]: the context frames as given (encoder) or as decoded (decoder)
    still: Tensor  # [B, 3, R, R]: the last of them; what a gated decoder copies where nothing changes

    def repeat_interleave(self, n: int) -> "Context":
        """Rows 0 0 .. 1 1 ..: each of the B rows n times."""
        return self._each(lambda x: x.repeat_interleave(n, 0))

    def __getitem__(self, index: Tensor | slice) -> "Context":
        """The rows at `index`."""
        return self._each(lambda x: x[index])

    def _each(self, f: Callable[[Tensor], Tensor]) -> "Context":
        attention = tuple(KeysValues(f(kv.keys), f(kv.values)) for kv in self.attention)
        return Context(attention, f(self.frames), f(self.still))


class CompressiveTokenizer(nn.Module):
    """Conditional VQGAN. The defaults are the published 64-pixel model; its files load with `load_state_dict`.

    Args:
        resolution: R, the frames' height and width in pixels.
        block_out_channels: widths of the levels; from each level to the next the side halves.
        layers_per_block: residual blocks a level in the encoders (the decoders have one more).
        latent_channels: width of the latents before they are quantised.
        code_dim: D; None means latent_channels.
        context_codes, dynamics_codes: sizes of the two codebooks.
        context_length: C.
        patch: side in latents of the patch that one dynamics token stands for.
        max_att_resolution: levels with sides up to this attend to the context.
        norm_groups: groups of the norms in the convolutional blocks; cross_norm_groups: in the cross-attention.
        attention_heads, dropout: of the cross-attention.
        context_mid_attention, dynamics_mid_attention: self-attention amid the nets for context/future frames.
        stem_patch: side of the pixel blocks that are folded into channels before the first convolution, and unfolded
            after the last: 1 as published, 2 or 4 for a fast small net.
        background_batches: training batches whose mean picture becomes the background, and then stays; the nets see and
            paint deviations from it, 4 times enlarged, so that a young net need not learn a still scene. 0: none.
        copy_gate: the decoder of future frames also predicts, for each pixel, whether to copy the last context frame.
        standardise: quantise each place's deviation from its usual latent: `positions` of VectorQuantizer.
        quantizer: makes a codebook when called with (codes, D, positions=...), e.g. a partial of VectorQuantizer.
        motion_weight, motion_scale: see motion_weights; 0 weighs all pixels alike, as published. Pixels move against
            the last context frame, and where there is a background, against that too.
        squared_weight: of the squared error beside the absolute one, see weighted_error; 0 as published.
        perceptual_weight: of the perceptual loss, where one is given.
    """

    background: Tensor
    background_seen: Tensor
    settings: dict[str, Any]  # the constructor's arguments

    def __init__(
        self,
        *,
        resolution: int = 64,
        block_out_channels: Sequence[int] = (128, 256, 512),
        layers_per_block: int = 2,
        latent_channels: int = 64,
        code_dim: int | None = None,
        context_codes: int = 8192,
        dynamics_codes: int = 8192,
        context_length: int = 2,
        patch: int = 4,
        max_att_resolution: int = 16,
        norm_groups: int = 32,
        cross_norm_groups: int = 32,
        attention_heads: int = 4,
        dropout: float = 0.1,
        context_mid_attention: bool = False,
        dynamics_mid_attention: bool = True,
        stem_patch: int = 1,
        background_batches: int = 0,
        copy_gate: bool = False,
        standardise: bool = False,
        quantizer: Callable[..., VectorQuantizer] = VectorQuantizer,
        motion_weight: float = 0.0,
        motion_scale: float = 0.1,
        squared_weight: float = 0.0,
        perceptual_weight: float = 1.0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.settings = given | {"block_out_channels": list(block_out_channels)}
        widths = tuple(int(width) for width in block_out_channels)
        self.latent_side = latent_side(resolution, len(widths), stem_patch, patch)
        self.resolution, self.context_length, self.patch = resolution, context_length, patch
        self.context_codes, self.dynamics_codes = context_codes, dynamics_codes
        self.stem_patch, self.copy_gate = stem_patch, copy_gate
        self.motion_weight, self.motion_scale = motion_weight, motion_scale
        self.squared_weight, self.perceptual_weight = squared_weight, perceptual_weight
        self.background_batches = background_batches
        if background_batches:
            self.register_buffer("background", torch.full((3, resolution, resolution), 0.5))
            self.register_buffer("background_seen", torch.zeros((), dtype=torch.int64))
        cross = CrossSizes(context_length, max_att_resolution, cross_norm_groups, attention_heads, dropout)
        pixels = 3 * stem_patch**2
        sizes = NetSizes(resolution // stem_patch, widths, layers_per_block, norm_groups, pixels, latent_channels)
        check_widths(sizes, cross)
        gated = replace(sizes, pixel_channels=pixels + copy_gate * stem_patch**2)
        self.encoder = Encoder(sizes, mid_attention=context_mid_attention)
        self.cond_encoder = Encoder(sizes, mid_attention=dynamics_mid_attention, cross=cross)
        self.decoder = Decoder(sizes, mid_attention=context_mid_attention)
        self.cond_decoder = Decoder(gated, mid_attention=dynamics_mid_attention, cross=cross)
        dim, patch_dim = code_dim or latent_channels, latent_channels * patch**2
        self.quant_conv = nn.Conv2d(latent_channels, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, latent_channels, 1)
        self.quant_linear = nn.Linear(patch_dim, dim)
        self.post_quant_linear = nn.Linear(dim, patch_dim)
        self.quantize = quantizer(context_codes, dim, positions=standardise * self.context_tokens)
        self.dynamics_quantize = quantizer(dynamics_codes, dim, positions=standardise * self.dynamics_tokens)

    @property
    def context_tokens(self) -> int:
        """N, the tokens of a context frame."""
        return self.latent_side**2

    @property
    def dynamics_tokens(self) -> int:
        """n, the tokens of a future frame."""
        return (self.latent_side // self.patch) ** 2

    @property
    def layout(self) -> TokenLayout:
        """Order and numbering of a segment's tokens."""
        sizes = (self.context_tokens, self.dynamics_tokens, self.context_length)
        return TokenLayout(self.context_codes, self.dynamics_codes, *sizes)

    @torch.no_grad()
    def tokenize(self, frames: Tensor) -> Tensor:
        """frames [B, T, 3, R, R] in [0, 1], T >= C -> tokens [B, L] int64 in the published layout and numbering.

        Raises:
            ValueError: frames of another shape or type, or outside [0, 1].
        """
        self._check(frames)
        low, high = frames.aminmax()
        if not (low >= 0.0 and high <= 1.0):  # written so that NaN is refused too
            raise ValueError(f"frames must lie in [0, 1], not in [{float(low):.4g}, {float(high):.4g}]")
        codes, context = self.encode_context(frames[:, : self.context_length])
        future = frames[:, self.context_length :]
        return self.layout.join(codes, self.encode_dynamics(future, context) if future.shape[1] else None)

    @torch.no_grad()
    def detokenize(self, tokens: Tensor) -> Tensor:
        """tokens [B, L] -> frames [B, T, 3, R, R] as decoded: about [0, 1], to be clamped where they are shown."""
        context_codes, codes = self.layout.split(tokens)
        context = self.context_features_for_decoder(context_codes)
        if not codes.shape[1]:
            return context.frames
        return torch.cat([context.frames, self.decode_dynamics(codes, context)], 1)

    def encode_context(self, frames: Tensor) -> tuple[Tensor, Context]:
        """frames [B, C, 3, R, R] in [0, 1] -> (codes [B, C, N] int64, the context for `encode_dynamics`)."""
        latents, context = self._context_latents(frames)
        return self.quantize.encode(latents), context

    def encode_dynamics(self, frames: Tensor, context: Context) -> Tensor:
        """frames [B, F, 3, R, R] in [0, 1] -> codes [B, F, n] int64, counted from 0."""
        return self.dynamics_quantize.encode(self._dynamics_latents(frames, context))

    def context_features_for_decoder(
        self, codes: Tensor, frames: Tensor | None = None, *, painted: bool = True
    ) -> Context:
        """codes [B, C, N] -> the context for `decode_dynamics`; its `frames` are the decoded context frames.

        Args:
            frames: the context frames themselves [B, C, 3, R, R] where at hand; a gated decoder then copies from the
                real last frame, else from the decoded one.
            painted: False where nobody looks at the decoded context frames: the decoder then stops at the last of its
                maps that future frames attend to, and `frames` are the given ones.
        """
        return self._decode_context(self.quantize.embed(codes), frames, painted)

    def decode_dynamics(self, codes: Tensor, context: Context) -> Tensor:
        """codes [B, F, n] -> frames [B, F, 3, R, R] float, not clamped to [0, 1]."""
        return self._decode_dynamics(self.dynamics_quantize.embed(codes), context)

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized, Quantized]:
        """frames [B, T, 3, R, R] -> (all frames as reconstructed, quantised context, quantised dynamics)."""
        if frames.shape[1] <= self.context_length:
            raise ValueError(
                f"a segment of {frames.shape[1]} frames: more than context_length {self.context_length} are needed"
            )
        past, future = frames.split([self.context_length, frames.shape[1] - self.context_length], 1)
        latents, context = self._context_latents(past)
        quantized = self.quantize(latents)
        changes = self.dynamics_quantize(self._dynamics_latents(future, context))
        decoded = self._decode_context(quantized.latents, past)
        predicted = self._decode_dynamics(changes.latents, decoded)
        return torch.cat([decoded.frames, predicted], 1), quantized, changes

    @torch.no_grad()
    def watch_background(self, frames: Tensor) -> None:
        """Take a training batch [B, T, 3, R, R] into the mean picture, while that is still being made."""
        if self.training and self.background_batches and int(self.background_seen) < self.background_batches:
            self.background_seen += 1
            self.background.lerp_(mean_over_processes(frames.float().mean((0, 1))), 1.0 / float(self.background_seen))

    def _context_latents(self, frames: Tensor) -> tuple[Tensor, Context]:
        """frames [B, C, 3, R, R] -> (latents [B, C, N, D], the context for the encoder of future frames)."""
        self._check(frames)
        if frames.shape[1] != self.context_length:
            raise ValueError(f"{frames.shape[1]} context frames were given: context_length is {self.context_length}")
        latents, maps = self.encoder(self._fold(frames))
        latents = self.quant_conv(latents).flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])
        attention = tuple(self.cond_encoder.project(maps, self.context_length))
        return latents, Context(attention, frames, frames[:, -1])

    def _dynamics_latents(self, frames: Tensor, context: Context) -> Tensor:
        """frames [B, F, 3, R, R] -> latents [B, F, n, D]."""
        self._check(frames)
        latents, _ = self.cond_encoder(self._fold(frames), context.attention)
        patches = F.pixel_unshuffle(latents, self.patch)  # [B*F, (channel, patch row, patch column), side, side]
        patches = patches.unflatten(1, (-1, self.patch**2)).transpose(1, 2).flatten(1, 2)  # published: channel last
        return self.quant_linear(patches.flatten(2).transpose(1, 2)).unflatten(0, frames.shape[:2])

    def _decode_context(self, latents: Tensor, frames: Tensor | None, painted: bool = True) -> Context:
        """latents [B, C, N, D] -> the context for the decoder of future frames."""
        maps = latents.flatten(0, 1).transpose(1, 2).unflatten(2, (self.latent_side, self.latent_side))
        maps = self.post_quant_conv(maps)
        if painted or frames is None:
            output, features = self.decoder(maps)
            decoded = self._paint(self._unfold(output).unflatten(0, latents.shape[:2]))
        else:
            decoded, features = frames, self.decoder.maps(maps, self.cond_decoder.attended[-1])
        attention = tuple(self.cond_decoder.project(features, self.context_length))
        return Context(attention, decoded, (decoded if frames is None else frames)[:, -1])

    def _decode_dynamics(self, latents: Tensor, context: Context) -> Tensor:
        """latents [B, F, n, D] -> frames [B, F, 3, R, R]."""
        side = self.latent_side // self.patch
        patches = self.post_quant_linear(latents.flatten(0, 1)).transpose(1, 2).unflatten(2, (side, side))
        patches = patches.unflatten(1, (self.patch**2, -1)).transpose(1, 2).flatten(1, 2)
        output, _ = self.cond_decoder(F.pixel_shuffle(patches, self.patch), context.attention)
        output = self._unfold(output).unflatten(0, latents.shape[:2])
        if not self.copy_gate:
            return self._paint(output)
        still = context.still.unsqueeze(1)
        gate, painted = output[:, :, 3:].sigmoid(), self._paint(output[:, :, :3])
        return torch.lerp(still, painted.to(still.dtype), gate.to(still.dtype))

    def _fold(self, frames: Tensor) -> Tensor:
        """[B, F, 3, R, R] -> [B*F, 3*stem², R/stem, R/stem], as deviation from the background where there is one."""
        frames = frames.flatten(0, 1)
        if self.background_batches:
            frames = CONTRAST * (frames - self.background)
        return fold(frames, self.stem_patch)

    def _paint(self, deviation: Tensor) -> Tensor:
        """What a decoder put out [..., 3, R, R] -> pixels."""
        return self.background + deviation / CONTRAST if self.background_batches else deviation

    def _unfold(self, output: Tensor) -> Tensor:
        """[M, channels*stem², R/stem, R/stem] -> [M, channels, R, R]."""
        return unfold(output, self.stem_patch)

    def _check(self, frames: Tensor) -> None:
        expected = (3, self.resolution, self.resolution)
        if frames.dim() != 5 or frames.shape[2:] != expected or not frames.is_floating_point():
            raise ValueError(
                f"frames must be float [B, T, {', '.join(map(str, expected))}] in [0, 1], not {frames.dtype} "
                f"{list(frames.shape)}"
            )
