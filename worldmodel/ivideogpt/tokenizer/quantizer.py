"""Vector quantisation: latents become indices into a learned codebook (van den Oord et al., arXiv 1711.00937)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.ivideogpt.processes import from_first_process, mean_over_processes


class Quantized(NamedTuple):
    """What a quantizer makes of latents [..., D]."""

    latents: Tensor  # [..., D]: the chosen codes; gradients pass straight through to the input
    loss: Tensor  # []: codebook term + commitment * commitment term
    codes: Tensor  # [...] int64


class VectorQuantizer(nn.Module):
    """Nearest code in L2, a straight-through gradient, and revival of codes that nobody uses.

    The defaults are the published quantizer and its tensors. The switches serve training from scratch in a few
    hundred updates, where latents else collapse onto a handful of codes (arXiv 2005.08520).

    Args:
        codes: K, the codebook's size.
        dim: D, the width of a code.
        commitment: weight (beta) of the term that pulls latents towards their codes; the codebook term has weight 1.
        positions: P where each of the P places of a frame is standardised on its own, over the training batch (by
            running statistics outside training), and each code is added to a learned vector of its place. A still
            background would else fill the codebook, and a young encoder drift off until all frames look alike to it.
            0: none.
        moving_average: codes are running means of the latents assigned to them, in place of the codebook term, whose
            steps (one learning rate each) cannot follow an encoder that still moves fast.
        revive_below: a code whose share of the assignments, as a running mean, falls below this fraction of the
            uniform share 1/K is moved onto a random latent of the current training batch; 0 turns revival off. A new
            codebook counts as unused, so that the first training batch seeds it from data. Never outside training.
        usage_decay: of those running means, per training batch.
        warmup: training batches that pass unquantised at first (their codes read 0): the encoder learns what to say
            before a codebook, seeded from data at the end, limits how. Quantised from the start, latents of a young
            encoder all fall onto a few codes and stay there.
        chunk: latents compared with the codebook at a time, which bounds memory at chunk x K floats.

    Where several processes train together, the running means of codes are those of the joint batch and dead codes are
    revived onto latents of the first process, so that the codebook is the same everywhere. The statistics of
    `positions` are each process's own while training.
    """

    usage: Tensor
    sums: Tensor
    seen: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        commitment: float = 1.0,
        positions: int = 0,
        moving_average: bool = False,
        revive_below: float = 0.0,
        usage_decay: float = 0.99,
        warmup: int = 0,
        chunk: int = 4096,
    ) -> None:
        super().__init__()
        self.fixed = False  # whether the codebook keeps its meaning while what is around it is trained
        if codes < 1 or dim < 1:
            raise ValueError(f"a codebook needs at least one code of at least one dimension, not {codes} x {dim}")
        if not 0.0 <= revive_below < 1.0 or not 0.0 <= usage_decay < 1.0:
            raise ValueError(f"revive_below and usage_decay must lie in [0, 1), not {revive_below} and {usage_decay}")
        self.commitment, self.moving_average = commitment, moving_average
        self.revive_below, self.usage_decay, self.chunk = revive_below, usage_decay, chunk
        self.warmup = warmup
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)
        self.embedding.weight.requires_grad_(not moving_average)
        self.positions = positions
        # Buffers only where needed, so that the published configuration has exactly the published tensors.
        if moving_average or revive_below > 0.0:
            self.register_buffer("usage", torch.zeros(codes))  # share of the assignments x K: 1 is uniform
        if moving_average:
            self.register_buffer("sums", torch.zeros(codes, dim))  # a code is its sum / its usage
        if warmup:
            if revive_below == 0.0:
                raise ValueError("warmup needs revive_below > 0: reviving is what seeds the codebook from data")
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if positions:
            self.norm = nn.BatchNorm1d(positions * dim, affine=False)
            self.place = nn.Parameter(torch.randn(positions, dim))

    def train(self, mode: bool = True) -> "VectorQuantizer":
        """Train mode, unless the codebook is fixed: codes then neither move with their latents nor are revived."""
        return super().train(mode and not self.fixed)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [..., D], or [..., P, D] where places are told apart.

        In float32 whatever the autocast, because small distances decide.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = self._standardise(latents.float())
            if self._warming_up():
                codes = torch.zeros(latents.shape[:-1], dtype=torch.int64, device=latents.device)
                return Quantized(self._placed(latents), latents.new_zeros(()), codes)
            if self.training and self.revive_below > 0.0:
                self._revive(latents.detach().flatten(0, -2))
            codes = self._nearest(latents)
            chosen = self.embedding(codes)
            loss = self.commitment * F.mse_loss(latents, chosen.detach())
            if not self.moving_average:
                loss = loss + F.mse_loss(chosen, latents.detach())
            if self.training:
                self._count(latents.detach().flatten(0, -2), codes.flatten())
            return Quantized(self._placed(latents + (chosen - latents).detach()), loss, codes)

    def _warming_up(self) -> bool:
        """Whether this training batch passes unquantised; counts it."""
        if not self.warmup or not self.training or int(self.seen) >= self.warmup:
            return False
        self.seen += 1
        return True

    def encode(self, latents: Tensor) -> Tensor:
        """Indices [...] int64 of the codes nearest to latents [..., D]."""
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            return self._nearest(self._standardise(latents.float()))

    def embed(self, codes: Tensor) -> Tensor:
        """The latents [..., D] that the codes at indices [...] stand for."""
        return self._placed(self.embedding(codes))

    def _standardise(self, latents: Tensor) -> Tensor:
        return self.norm(latents.flatten(0, -3).flatten(1)).view_as(latents) if self.positions else latents

    def _placed(self, latents: Tensor) -> Tensor:
        return latents + self.place if self.positions else latents

    @torch.no_grad()
    def _nearest(self, latents: Tensor) -> Tensor:
        codebook = self.embedding.weight.float()
        squares = codebook.square().sum(1)  # [K]; |z|^2 is the same for every code, so it is left out
        flat = latents.reshape(-1, codebook.shape[1]).split(self.chunk)
        nearest = [torch.addmm(squares, rows, codebook.T, alpha=-2.0).argmin(1) for rows in flat]
        return torch.cat(nearest).view(latents.shape[:-1])

    @torch.no_grad()
    def _revive(self, latents: Tensor) -> None:
        """Move unused codes onto random latents [M, D]; no branch on values, so that a GPU need not wait."""
        dead = self.usage < self.revive_below
        seeds = from_first_process(latents[torch.randint(len(latents), (len(dead),), device=latents.device)])
        self.embedding.weight.copy_(torch.where(dead[:, None], seeds, self.embedding.weight))
        self.usage.masked_fill_(dead, 1.0)  # a fair chance to be chosen before it is judged again
        if self.moving_average:
            self.sums.copy_(torch.where(dead[:, None], seeds, self.sums))

    @torch.no_grad()
    def _count(self, latents: Tensor, codes: Tensor) -> None:
        """Bring the running means up to date with latents [M, D] and their codes [M]."""
        if not self.moving_average and self.revive_below == 0.0:
            return
        share = len(self.usage) / len(codes)
        counts = torch.bincount(codes, minlength=len(self.usage)).to(self.usage.dtype) * share
        counts = mean_over_processes(counts)
        self.usage.lerp_(counts, 1.0 - self.usage_decay)
        if self.moving_average:
            sums = torch.zeros_like(self.sums).index_add_(0, codes, latents * share)
            self.sums.lerp_(mean_over_processes(sums), 1.0 - self.usage_decay)
            self.embedding.weight.copy_(self.sums / self.usage.clamp(min=1e-6)[:, None])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Accept a codebook saved without running means: its codes count as used."""
        filled = dict(state_dict)
        weight = filled.get(f"{prefix}embedding.weight", self.embedding.weight).detach()
        for name, value in (("usage", torch.ones_like(weight[:, 0])), ("sums", weight.clone())):
            if hasattr(self, name):
                filled.setdefault(f"{prefix}{name}", value)
        super()._load_from_state_dict(filled, prefix, *args, **kwargs)
