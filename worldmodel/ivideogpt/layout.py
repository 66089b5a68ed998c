"""Order and numbering of the tokens of a segment, as published.

A segment of T frames, the first C of them context: ``[N] S1 [N] S2 [n] S2 [n] …``. N context tokens a frame,
n dynamics tokens a frame, S1 the separator between context frames, S2 the slot before each future frame.
Vocabulary: context codes, then dynamics codes, then S1, then S2.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Token counts and numbering of a tokenizer; F = T - C future frames."""

    context_codes: int
    dynamics_codes: int
    context_tokens: int  # N, a context frame
    dynamics_tokens: int  # n, a future frame
    context_length: int  # C

    @property
    def vocabulary(self) -> int:
        """Number of tokens: rows of the embedding and of the output head."""
        return self.context_codes + self.dynamics_codes + 2

    @property
    def separator(self) -> int:
        """S1."""
        return self.context_codes + self.dynamics_codes

    @property
    def slot(self) -> int:
        """S2."""
        return self.separator + 1

    @property
    def prefix(self) -> int:
        """Number of tokens of the context, and index of the first slot."""
        return (self.context_tokens + 1) * self.context_length - 1

    @property
    def stride(self) -> int:
        """Number of tokens of a future frame, with its slot."""
        return self.dynamics_tokens + 1

    def length(self, frames: int) -> int:
        """Number of tokens of a segment of ``frames`` frames (T)."""
        return self.prefix + self.stride * (frames - self.context_length)

    def futures(self, tokens: int) -> int:
        """F, the number of future frames in a segment of ``tokens`` tokens."""
        count, rest = divmod(tokens - self.prefix, self.stride)
        if count < 0 or rest:
            raise ValueError(
                f"{tokens} tokens are no whole number of frames: a segment has {self.prefix} for its context "
                f"and {self.stride} for each future frame"
            )
        return count

    def read(self, tokens: Tensor) -> "TokenLayout":
        """Layout of tokens [B, L] with these codebooks; its counts follow from the positions of separators and slots.

        Raises:
            ValueError: no layout has these positions.
        """
        row = tokens[0]
        slots = (row == self.slot).nonzero().flatten().tolist()
        frames = int((row == self.separator).sum()) + 1
        prefix = slots[0] if slots else len(row)
        stride = (slots[1] if len(slots) > 1 else len(row)) - prefix
        counts = ((prefix + 1) // frames - 1, stride - 1 if slots else self.dynamics_tokens, frames)
        found = replace(self, context_tokens=counts[0], dynamics_tokens=counts[1], context_length=counts[2])
        regular = found.prefix == prefix and slots == list(range(prefix, len(row), found.stride))
        if not regular or (slots and found.length(frames + len(slots)) != len(row)):
            raise ValueError(
                f"{len(row)} tokens with {frames - 1} separators and {len(slots)} slots are no segment, which is "
                "[N] S1 [N] S2 [n] S2 [n] .."
            )
        return found

    def join(self, context: Tensor, dynamics: Tensor | None = None) -> Tensor:
        """Convert codes, each counted from 0 in its own codebook, to a segment's tokens.

        Args:
            context: int64 [B, C, N].
            dynamics: int64 [B, F, n]; None for the context alone.

        Returns:
            int64 [B, L].
        """
        batch = context.shape[0]
        separator = context.new_full((batch, self.context_length, 1), self.separator)
        tokens = torch.cat([context, separator], -1).flatten(1)[:, :-1]  # [B, (N + 1) C - 1]
        if dynamics is None:
            return tokens
        slot = dynamics.new_full((batch, dynamics.shape[1], 1), self.slot)
        future = torch.cat([slot, dynamics + self.context_codes], -1).flatten(1)  # [B, (n + 1) F]
        return torch.cat([tokens, future], 1)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Invert ``join``: tokens [B, L] to context codes [B, C, N] and dynamics codes [B, F, n].

        A generated token that is not a dynamics code becomes the nearest one, as published.
        """
        futures = self.futures(tokens.shape[1])
        filler = tokens.new_full((tokens.shape[0], 1), self.separator)
        context = torch.cat([tokens[:, : self.prefix], filler], 1)
        context = context.unflatten(1, (self.context_length, self.context_tokens + 1))[..., :-1]
        dynamics = tokens[:, self.prefix :].unflatten(1, (futures, self.stride))[..., 1:]
        return context, self.codes(dynamics)

    def corrupt(self, tokens: Tensor, share: float) -> Tensor:
        """Replace a random share of the dynamics tokens in tokens [B, L] by random dynamics tokens."""
        future = tokens[:, self.prefix :]
        dynamics = torch.arange(future.shape[1], device=tokens.device) % self.stride > 0
        swapped = (torch.rand(future.shape, device=tokens.device) < share) & dynamics
        drawn = torch.randint(self.context_codes, self.separator, future.shape, device=tokens.device)
        return torch.cat([tokens[:, : self.prefix], torch.where(swapped, drawn, future)], 1)

    def codes(self, tokens: Tensor) -> Tensor:
        """Convert generated tokens to dynamics codes; a token outside that codebook becomes the nearest code."""
        return (tokens - self.context_codes).clamp(0, self.dynamics_codes - 1)
