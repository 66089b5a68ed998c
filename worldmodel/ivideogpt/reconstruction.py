"""Codes, latents and reconstructions of real steps. B batch, T time, C context frames, N and n tokens, L latents."""

import torch
from tensordict import TensorDictBase
from torch import Tensor

from worldmodel.ivideogpt.precision import Precision, autocast
from worldmodel.ivideogpt.segments import SegmentReader
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.training import mode


class Reconstructor:
    """Encodes and decodes real steps with a tokenizer that is trained elsewhere.

    Args:
        tokenizer: The tokenizer.
        reader: Reads steps.
        precision: Precision of the large matrix products.
    """

    def __init__(self, tokenizer: CompressiveTokenizer, reader: SegmentReader, precision: Precision) -> None:
        self.tokenizer, self.reader, self.precision = tokenizer, reader, precision

    @torch.no_grad()
    def reconstruct(self, steps: TensorDictBase) -> Tensor:
        """Reconstruct the frames of steps [B, T]: uint8.

        The context frames are encoded as context tokens, and all others as dynamics tokens. With an initial frame all
        frames of the steps are dynamics tokens.
        """
        past, future = self.reader.split(steps)
        with mode(self.tokenizer, False), autocast(past, self.precision):
            codes, encoded = self.tokenizer.encode_context(past)
            context = self.tokenizer.context_features_for_decoder(codes, past)
            shown = 0 if self.reader.initial else self.reader.context_length
            decoded = context.frames[:, past.shape[1] - shown :].float()
            if future.shape[1]:
                dynamics = self.tokenizer.encode_dynamics(future, encoded)
                decoded = torch.cat([decoded, self.tokenizer.decode_dynamics(dynamics, context).float()], 1)
        return decoded.clamp(0, 1).mul(255).round().to(torch.uint8)

    @torch.no_grad()
    def codes(self, steps: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        """As WorldModel.codes: of the context (with the goal) [B, C, N], and of later frames [B, F, n]."""
        past, future = self.reader.split(steps)
        with mode(self.tokenizer, False), autocast(past, self.precision):
            context, features = self.tokenizer.encode_context(past)
            dynamics = self.tokenizer.encode_dynamics(future, features)
        sizes = self.tokenizer.context_codes, self.tokenizer.dynamics_codes
        return {"context": (context, sizes[0]), "dynamics": (dynamics, sizes[1])}

    @torch.no_grad()
    def latents(self, pixels: Tensor, initial: Tensor) -> Tensor:
        """Latents [B, T, L] of frames uint8 [B, T, 3, R, R] in the context of initial frames uint8 [B, 3, R, R]."""
        past = initial[:, None].expand(-1, self.tokenizer.context_length, -1, -1, -1).float() / 255
        with mode(self.tokenizer, False), autocast(past, self.precision):
            codes = self.tokenizer.encode_dynamics(pixels.float() / 255, self.tokenizer.encode_context(past)[1])
        return self.tokenizer.dynamics_quantize.vectors(codes)
