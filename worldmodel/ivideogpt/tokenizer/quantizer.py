"""Vector quantisation: latents become indices into a learned codebook (van den Oord et al., arXiv 1711.00937)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.exact_products import exact_products
from worldmodel.ivideogpt.counter import HostCounter
from worldmodel.ivideogpt.distributed import from_first_process, mean_over_processes
from worldmodel.ivideogpt.tokenizer.settings import MovingAverage
from worldmodel.ivideogpt.transformer.losses import occurrences

LEAST_USAGE = 1e-6  # least usage at which the running mean of a code is defined
CHUNK = 4096  # Latents compared with the codebook at a time, which bounds memory at CHUNK x K floats.


class Quantized(NamedTuple):
    """Latents [..., D] after quantisation.

    Attributes:
        latents: The chosen codes [..., D]. Gradients pass straight through to the input.
        loss: Codebook loss plus weighted commitment loss, 0-d.
        codes: Indices of the codes [...], int64.
    """

    latents: Tensor
    loss: Tensor
    codes: Tensor


class VectorQuantizer(nn.Module):
    """Nearest code in L2, with a straight-through gradient. The defaults are the published quantiser and its tensors.

    In distributed training the running means of codes are those of the joint batch, and unused codes are replaced by
    latents of the first process, so that all processes have the same codebook.

    Args:
        codes: K, size of the codebook.
        dim: D, width of a code.
        commitment: Weight (beta) of the commitment loss. The codebook loss has weight 1.
        moving_average: How codes follow their latents. None: by the codebook loss.

    Raises:
        ValueError: The codebook is empty.
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
        moving_average: MovingAverage | None = None,
    ) -> None:
        super().__init__()
        self.fixed = False  # True: the codebook is frozen while the rest of the tokenizer is trained.
        if codes < 1 or dim < 1:
            raise ValueError(f"a codebook needs at least one code of at least one dimension, not {codes} x {dim}")
        self.commitment, self.moving_average = commitment, moving_average
        self._counter = HostCounter()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)
        self.embedding.weight.requires_grad_(moving_average is None)
        # Buffers exist only where needed, so that the published configuration has exactly the published tensors.
        if moving_average is not None:
            self.register_buffer("usage", torch.zeros(codes))  # share of the assignments x K: 1 is uniform
            self.register_buffer("sums", torch.zeros(codes, dim))  # a code is its sum / its usage
        if self.warmup:
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @property
    def warmup(self) -> int:
        """Number of first training batches, which are not quantised."""
        return 0 if self.moving_average is None else self.moving_average.warmup

    def train(self, mode: bool = True) -> "VectorQuantizer":
        """Set train mode; a fixed codebook stays in eval mode, so that its codes do not change."""
        return super().train(mode and not self.fixed)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [..., D].

        Always in float32, also under autocast, because small differences of distance decide.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            if self._warming_up():
                codes = torch.zeros(latents.shape[:-1], dtype=torch.int64, device=latents.device)
                return Quantized(latents, latents.new_zeros(()), codes)
            if self.training and self.moving_average is not None:
                self._revive(latents.detach().flatten(0, -2), self.moving_average)
            codes = self._nearest(latents)
            chosen = self.embedding(codes)
            loss = self.commitment * F.mse_loss(latents, chosen.detach())
            if self.moving_average is None:
                loss = loss + F.mse_loss(chosen, latents.detach())
            elif self.training:
                self._follow(latents.detach().flatten(0, -2), codes.flatten(), self.moving_average)
            return Quantized(latents + (chosen - latents).detach(), loss, codes)

    def _warming_up(self) -> bool:
        """Whether this training batch is not quantised; counts it."""
        if not self.warmup or not self.training or self._counter.value(self.seen) >= self.warmup:
            return False
        self._counter.add_one(self.seen)
        return True

    def encode(self, latents: Tensor) -> Tensor:
        """Indices [...] int64 of the codes nearest to latents [..., D]."""
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            return self._nearest(latents.float())

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [..., D] at indices [...]."""
        latents: Tensor = self.embedding(codes)
        return latents

    @torch.no_grad()
    def vectors(self, codes: Tensor) -> Tensor:
        """Codes [*B, n] as vectors [*B, n * D] in units of the codebook's standard deviation, without gradient."""
        return (self.embed(codes) / self.embedding.weight.std()).flatten(-2)

    @torch.no_grad()
    def _nearest(self, latents: Tensor) -> Tensor:
        codebook = self.embedding.weight.float()
        squares = codebook.square().sum(1)  # [K]; |z|^2 is the same for every code, so it is left out
        flat = latents.reshape(-1, codebook.shape[1]).split(CHUNK)
        with exact_products():
            nearest = [torch.addmm(squares, rows, codebook.T, alpha=-2.0).argmin(1) for rows in flat]
        return torch.cat(nearest).view(latents.shape[:-1])

    @torch.no_grad()
    def _revive(self, latents: Tensor, settings: MovingAverage) -> None:
        """Replace unused codes by random latents [M, D], without a branch that would wait for the GPU."""
        if settings.revive_below == 0.0:
            return
        unused = self.usage < settings.revive_below
        seeds = from_first_process(latents[torch.randint(len(latents), (len(unused),), device=latents.device)])
        self.embedding.weight.copy_(torch.where(unused[:, None], seeds, self.embedding.weight))
        self.usage.masked_fill_(unused, 1.0)  # A new code has time to be chosen before it can be replaced again.
        self.sums.copy_(torch.where(unused[:, None], seeds, self.sums))

    @torch.no_grad()
    def _follow(self, latents: Tensor, codes: Tensor, settings: MovingAverage) -> None:
        """Update the running means and the codes from latents [M, D] and their codes [M]."""
        share = len(self.usage) / len(codes)
        counts = occurrences(codes, len(self.usage)).to(self.usage.dtype) * share
        self.usage.lerp_(mean_over_processes(counts), 1.0 - settings.decay)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latents * share)
        self.sums.lerp_(mean_over_processes(sums), 1.0 - settings.decay)
        used = (self.usage > LEAST_USAGE)[:, None]  # a code that was never chosen stays unchanged
        means = self.sums / self.usage.clamp(min=LEAST_USAGE)[:, None]
        self.embedding.weight.copy_(torch.where(used, means, self.embedding.weight))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Accept a codebook that was saved without running means; all of its codes then count as used."""
        filled = dict(state_dict)
        weight = filled.get(f"{prefix}embedding.weight", self.embedding.weight).detach()
        for name, value in (("usage", torch.ones_like(weight[:, 0])), ("sums", weight.clone())):
            if hasattr(self, name):
                filled.setdefault(f"{prefix}{name}", value)
        super()._load_from_state_dict(filled, prefix, *args, **kwargs)
