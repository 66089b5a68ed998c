"""Vector quantisation: latents become indices into a learned codebook (van den Oord et al., arXiv 1711.00937)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Quantized(NamedTuple):
    """What a quantizer makes of latents [..., D]."""

    latents: Tensor  # [..., D]: the chosen codes; gradients pass straight through to the input
    loss: Tensor  # []: codebook term + commitment * commitment term
    codes: Tensor  # [...] int64


class VectorQuantizer(nn.Module):
    """Nearest code in L2, a straight-through gradient, and revival of codes that nobody uses.

    Args:
        codes: K, the codebook's size.
        dim: D, the width of a code.
        commitment: weight (beta) of the term that pulls latents towards their codes; the codebook term has weight 1.
        normalise: compare directions only: latents and codes are scaled to length 1 (arXiv 2110.04627).
        revive_below: a code whose share of the assignments, as a running mean, falls below this fraction of the
            uniform share 1/K is moved onto a random latent of the current training batch; 0 turns revival off. A new
            codebook counts as unused, so that the first training batch seeds it from data. Never outside training.
        usage_decay: of the running mean of a code's share, per training batch.
        chunk: latents compared with the codebook at a time, which bounds memory at chunk x K floats.
    """

    usage: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        commitment: float = 1.0,
        normalise: bool = False,
        revive_below: float = 0.0,
        usage_decay: float = 0.99,
        chunk: int = 4096,
    ) -> None:
        super().__init__()
        if codes < 1 or dim < 1:
            raise ValueError(f"a codebook needs at least one code of at least one dimension, not {codes} x {dim}")
        if not 0.0 <= revive_below < 1.0 or not 0.0 <= usage_decay < 1.0:
            raise ValueError(f"revive_below and usage_decay must lie in [0, 1), not {revive_below} and {usage_decay}")
        self.commitment = commitment
        self.normalise = normalise
        self.revive_below = revive_below
        self.usage_decay = usage_decay
        self.chunk = chunk
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)
        if revive_below > 0.0:
            # Only here, so that a codebook without revival has exactly the published tensors.
            self.register_buffer("usage", torch.zeros(codes))  # share of the assignments x K: 1 is uniform

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [..., D]; in float32 whatever the autocast, because small distances decide."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = self._scaled(latents.float())
            if self.training and self.revive_below > 0.0:
                self._revive(latents)
            codes = self.encode(latents)
            chosen = self.embed(codes)
            loss = self.commitment * F.mse_loss(latents, chosen.detach()) + F.mse_loss(chosen, latents.detach())
            if self.training and self.revive_below > 0.0:
                self._count(codes)
            return Quantized(latents + (chosen - latents).detach(), loss, codes)

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Indices [...] int64 of the codes nearest to latents [..., D]."""
        codebook = self._scaled(self.embedding.weight.float())  # [K, D]
        squares = codebook.square().sum(1)  # [K]; |z|^2 is the same for every code, so it is left out
        flat = self._scaled(latents.float()).reshape(-1, codebook.shape[1])
        with torch.autocast(latents.device.type, enabled=False):
            nearest = [torch.addmm(squares, rows, codebook.T, alpha=-2.0).argmin(1) for rows in flat.split(self.chunk)]
        return torch.cat(nearest).view(latents.shape[:-1])

    def embed(self, codes: Tensor) -> Tensor:
        """The codes [..., D] at indices [...]."""
        return self._scaled(self.embedding(codes))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.normalise else vectors

    @torch.no_grad()
    def _revive(self, latents: Tensor) -> None:
        """Move unused codes onto random latents; without a branch on values, so that a GPU need not wait."""
        dead = self.usage < self.revive_below
        flat = latents.detach().reshape(-1, latents.shape[-1])
        seeds = flat[torch.randint(len(flat), (len(self.usage),), device=flat.device)]
        weight = self.embedding.weight
        weight.copy_(torch.where(dead[:, None], seeds.to(weight.dtype), weight))
        self.usage.masked_fill_(dead, 1.0)  # a fair chance to be chosen before it is judged again

    @torch.no_grad()
    def _count(self, codes: Tensor) -> None:
        share = torch.bincount(codes.flatten(), minlength=len(self.usage)) * (len(self.usage) / codes.numel())
        self.usage.lerp_(share.to(self.usage.dtype), 1.0 - self.usage_decay)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Accept a codebook saved without revival: its codes count as used."""
        if self.revive_below > 0.0:
            state_dict.setdefault(f"{prefix}usage", torch.ones_like(self.usage))  # type: ignore[attr-defined]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
