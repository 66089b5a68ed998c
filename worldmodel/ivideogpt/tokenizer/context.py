"""Encoded context frames, shared by all future frames of a row. B batch, C context frames, R resolution."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worldmodel.ivideogpt.tokenizer.layers import KeysValues


@dataclass(frozen=True)
class Context:
    """Encoded context frames of B rows, as input of a conditional net. Made once and used for every future frame.

    Attributes:
        attention: Keys and values for each cross-attention block of the net.
        frames: [B, C, 3, R, R], the context frames as given (encoder) or as decoded (decoder).
        still: [B, 3, R, R], the last of them, which a gated decoder copies where nothing changes.
    """

    attention: tuple[KeysValues, ...]
    frames: Tensor
    still: Tensor

    def repeat_interleave(self, n: int) -> "Context":
        """Each of the B rows n times in succession."""
        return self._each(lambda x: x.repeat_interleave(n, 0))

    def __getitem__(self, index: Tensor | slice) -> "Context":
        """The rows at `index`."""
        return self._each(lambda x: x[index])

    def _each(self, f: Callable[[Tensor], Tensor]) -> "Context":
        attention = tuple(KeysValues(f(kv.keys), f(kv.values)) for kv in self.attention)
        return Context(attention, f(self.frames), f(self.still))
