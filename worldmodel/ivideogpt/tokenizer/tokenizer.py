"""Compressive tokenizer: many tokens for each context frame, and few tokens for the changes in each future frame.

Dimensions: B batch, T frames of a segment, C context frames, F future frames, R resolution, N context tokens a frame,
n dynamics tokens a frame, D code width. Source: iVideoGPT, arXiv 2405.15223, section 3.1.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.ivideogpt.counter import HostCounter
from worldmodel.ivideogpt.distributed import mean_over_processes
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.tokenizer.autoencoder import CrossSizes, Decoder, Encoder, NetSizes, check_widths, latent_side
from worldmodel.ivideogpt.tokenizer.context import Context
from worldmodel.ivideogpt.tokenizer.layers import fold, unfold
from worldmodel.ivideogpt.tokenizer.quantizer import Quantized, VectorQuantizer
from worldmodel.ivideogpt.tokenizer.settings import (
    AutoencoderSizes,
    Codebooks,
    CrossAttentionSizes,
    StaticScene,
    TokenizerLoss,
)
from worldmodel.ranges import Frames, Side

CONTRAST = 4.0  # Scales deviations from the background, whose standard deviation at moving pixels is about 0.25.
PUBLISHED_AUTOENCODER = AutoencoderSizes()
PUBLISHED_CROSS_ATTENTION = CrossAttentionSizes()
PUBLISHED_CODEBOOKS = Codebooks()
PUBLISHED_SCENE = StaticScene()
PUBLISHED_LOSS = TokenizerLoss()


class CompressiveTokenizer(nn.Module):
    """Conditional VQGAN. The defaults are the published model for 64x64 pixels, whose weights load unchanged.

    Args:
        resolution: R, height and width of the frames in pixels.
        context_length: C, context frames.
        patch: Side in latents of the patch that one dynamics token encodes.
        autoencoder: Sizes of the convolutional nets.
        cross_attention: Sizes of the cross-attention from future frames to context frames.
        codebooks: The codebooks and how they are trained.
        static_scene: Use of a fixed camera.
        loss: Weights of the reconstruction loss.

    Raises:
        ValueError: The sizes do not fit together.
    """

    background: Tensor
    background_seen: Tensor
    settings: dict[str, Any]  # the constructor's arguments

    def __init__(
        self,
        *,
        resolution: Side = 64,
        context_length: Frames = 2,
        patch: Side = 4,
        autoencoder: AutoencoderSizes = PUBLISHED_AUTOENCODER,
        cross_attention: CrossAttentionSizes = PUBLISHED_CROSS_ATTENTION,
        codebooks: Codebooks = PUBLISHED_CODEBOOKS,
        static_scene: StaticScene = PUBLISHED_SCENE,
        loss: TokenizerLoss = PUBLISHED_LOSS,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.settings = given
        self.resolution, self.context_length, self.patch = resolution, context_length, patch
        self.latent_side = latent_side(resolution, autoencoder, patch)
        self.context_codes, self.dynamics_codes = codebooks.context_codes, codebooks.dynamics_codes
        self.stem_patch, self.copy_gate, self.loss = autoencoder.stem_patch, static_scene.copy_gate, loss
        self.background_batches, self._counter = static_scene.background_batches, HostCounter()
        if self.background_batches:
            self.register_buffer("background", torch.full((3, resolution, resolution), 0.5))
            self.register_buffer("background_seen", torch.zeros((), dtype=torch.int64))
        self._make_nets(autoencoder, cross_attention)
        self._make_codebooks(codebooks, autoencoder.latent_channels)

    def _make_nets(self, autoencoder: AutoencoderSizes, cross_attention: CrossAttentionSizes) -> None:
        cross = CrossSizes(self.context_length, cross_attention)
        sizes = NetSizes(self.resolution // self.stem_patch, 3 * self.stem_patch**2, autoencoder)
        check_widths(sizes, cross)
        gated = replace(sizes, pixel_channels=(3 + self.copy_gate) * self.stem_patch**2)
        self.encoder, self.cond_encoder = Encoder(sizes), Encoder(sizes, cross)
        self.decoder, self.cond_decoder = Decoder(sizes), Decoder(gated, cross)

    def _make_codebooks(self, codebooks: Codebooks, latent_channels: int) -> None:
        dim, patch_dim = codebooks.code_dim or latent_channels, latent_channels * self.patch**2
        self.quant_conv = nn.Conv2d(latent_channels, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, latent_channels, 1)
        self.quant_linear = nn.Linear(patch_dim, dim)
        self.post_quant_linear = nn.Linear(dim, patch_dim)
        self.quantize, self.dynamics_quantize = (
            VectorQuantizer(codes, dim, commitment=codebooks.commitment, moving_average=codebooks.moving_average)
            for codes in (codebooks.context_codes, codebooks.dynamics_codes)
        )

    @property
    def context_tokens(self) -> int:
        """N, number of tokens of a context frame."""
        return self.latent_side**2

    @property
    def dynamics_tokens(self) -> int:
        """n, number of tokens of a future frame."""
        return (self.latent_side // self.patch) ** 2

    @property
    def layout(self) -> TokenLayout:
        """Order and numbering of the tokens of a segment."""
        sizes = (self.context_tokens, self.dynamics_tokens, self.context_length)
        return TokenLayout(self.context_codes, self.dynamics_codes, *sizes)

    @torch.no_grad()
    def tokenize(self, frames: Tensor) -> Tensor:
        """Encode a segment.

        Args:
            frames: [B, T, 3, R, R] float in [0, 1], T >= C.

        Returns:
            Tokens [B, L] int64 in the published layout and numbering.

        Raises:
            ValueError: The frames have another shape or type, or values outside [0, 1].
        """
        self._check(frames)
        low, high = frames.aminmax()
        if not (low >= 0.0 and high <= 1.0):  # written so that NaN is refused too
            raise ValueError(f"frames must lie in [0, 1], not in [{float(low):.4g}, {float(high):.4g}]")
        return self.tokens(frames)

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> Tensor:
        """As `tokenize`, without the check that frames lie in [0, 1], which waits for a GPU."""
        codes, context = self.encode_context(frames[:, : self.context_length])
        future = frames[:, self.context_length :]
        return self.layout.join(codes, self.encode_dynamics(future, context) if future.shape[1] else None)

    @torch.no_grad()
    def detokenize(self, tokens: Tensor) -> Tensor:
        """Decode tokens [B, L] to frames [B, T, 3, R, R], not clamped to [0, 1]."""
        context_codes, codes = self.layout.split(tokens)
        context = self.context_features_for_decoder(context_codes)
        if not codes.shape[1]:
            return context.frames
        return torch.cat([context.frames, self.decode_dynamics(codes, context)], 1)

    def encode_context(self, frames: Tensor) -> tuple[Tensor, Context]:
        """Encode context frames.

        Args:
            frames: [B, C, 3, R, R] float in [0, 1].

        Returns:
            Codes [B, C, N] int64, and the context for `encode_dynamics`.
        """
        latents, context = self._context_latents(frames)
        return self.quantize.encode(latents), context

    def encode_dynamics(self, frames: Tensor, context: Context) -> Tensor:
        """Encode future frames [B, F, 3, R, R] in [0, 1] to codes [B, F, n] int64, counted from 0."""
        return self.dynamics_quantize.encode(self._dynamics_latents(frames, context))

    def context_features_for_decoder(
        self, codes: Tensor, frames: Tensor | None = None, *, painted: bool = True
    ) -> Context:
        """Decode context frames.

        Args:
            codes: [B, C, N].
            frames: The real context frames [B, C, 3, R, R]. A gated decoder then copies the last of them. None: it
                copies the last decoded frame.
            painted: False if the decoded context frames are not used. The decoder then stops at the last map that
                future frames attend to.

        Returns:
            The context for `decode_dynamics`. Its `frames` are the decoded frames; without `painted`, the given ones.
        """
        return self._decode_context(self.quantize.embed(codes), frames, painted)

    def decode_dynamics(self, codes: Tensor, context: Context) -> Tensor:
        """Decode codes [B, F, n] to future frames [B, F, 3, R, R] float, not clamped to [0, 1]."""
        return self._decode_dynamics(self.dynamics_quantize.embed(codes), context)

    @property
    def latent_size(self) -> int:
        """L, width of a future frame's codes as one vector, see `VectorQuantizer.vectors`."""
        return self.dynamics_tokens * self.dynamics_quantize.embedding.embedding_dim

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized, Quantized]:
        """Reconstruct a segment, for training.

        Args:
            frames: [B, T, 3, R, R] float in [0, 1], T > C.

        Returns:
            The reconstructed frames [B, T, 3, R, R], the quantised context latents and the quantised dynamics latents.

        Raises:
            ValueError: There is no future frame, or the frames have another shape or type.
        """
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
        """Update the background with a training batch [B, T, 3, R, R]; only in the first `background_batches`."""
        if not self.training or not self.background_batches:
            return
        if self._counter.value(self.background_seen) < self.background_batches:
            seen = self._counter.add_one(self.background_seen)
            self.background.lerp_(mean_over_processes(frames.float().mean((0, 1))), 1.0 / seen)

    def _context_latents(self, frames: Tensor) -> tuple[Tensor, Context]:
        """Latents [B, C, N, D] of frames [B, C, 3, R, R], and the context for the encoder of future frames."""
        self._check(frames)
        if frames.shape[1] != self.context_length:
            raise ValueError(f"{frames.shape[1]} context frames were given: context_length is {self.context_length}")
        latents, maps = self.encoder(self._fold(frames))
        latents = self.quant_conv(latents).flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])
        attention = tuple(self.cond_encoder.project(maps, self.context_length))
        return latents, Context(attention, frames, frames[:, -1])

    def _dynamics_latents(self, frames: Tensor, context: Context) -> Tensor:
        """Latents [B, F, n, D] of frames [B, F, 3, R, R]."""
        self._check(frames)
        latents, _ = self.cond_encoder(self._fold(frames), context.attention)
        patches = F.pixel_unshuffle(latents, self.patch)  # [B*F, (channel, patch row, patch column), side, side]
        patches = patches.unflatten(1, (-1, self.patch**2)).transpose(1, 2).flatten(1, 2)  # published: channel last
        return self.quant_linear(patches.flatten(2).transpose(1, 2)).unflatten(0, frames.shape[:2])

    def _decode_context(self, latents: Tensor, frames: Tensor | None, painted: bool = True) -> Context:
        """The context for the decoder of future frames, from latents [B, C, N, D]."""
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
        """Frames [B, F, 3, R, R] of latents [B, F, n, D]."""
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
        """[B, F, 3, R, R] to [B*F, 3*stem², R/stem, R/stem]; with a background, the deviation from it."""
        frames = frames.flatten(0, 1)
        if self.background_batches:
            frames = CONTRAST * (frames - self.background)
        return fold(frames, self.stem_patch)

    def _paint(self, deviation: Tensor) -> Tensor:
        """Pixels from the output of a decoder [..., 3, R, R]."""
        return self.background + deviation / CONTRAST if self.background_batches else deviation

    def _unfold(self, output: Tensor) -> Tensor:
        """[M, channels*stem², R/stem, R/stem] to [M, channels, R, R]."""
        return unfold(output, self.stem_patch)

    def _check(self, frames: Tensor) -> None:
        expected = (3, self.resolution, self.resolution)
        if frames.dim() != 5 or frames.shape[2:] != expected or not frames.is_floating_point():
            sizes = f"[B, T, {', '.join(map(str, expected))}]"
            raise ValueError(f"frames must be float {sizes} in [0, 1], not {frames.dtype} {list(frames.shape)}")
