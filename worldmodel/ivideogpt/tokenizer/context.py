"""Encoded context frames, shared by all future frames of a row. B batch, C context frames, R resolution."""

from dataclasses import dataclass

from torch import Tensor

from worldmodel.ivideogpt.tokenizer.layers import KeysValues


@dataclass(frozen=True)
class Context:
    """Encoded context frames of B rows, an input of a conditional net. Computed once and used for all future frames.

    Attributes:
        attention: Keys and values for each cross-attention block of the net.
        frames: [B, C, 3, R, R], the context frames as given (encoder) or as decoded (decoder).
        still: [B, 3, R, R], the last of them, which a gated decoder copies where nothing changes.
    """

    attention: tuple[KeysValues, ...]
    frames: Tensor
    still: Tensor
