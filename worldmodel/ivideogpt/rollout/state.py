"""State of imagined rollouts.

B contexts, C context frames of the layout (a goal among them), R = B * forks rollout rows, P numbers of the robot's
state, n dynamics tokens a frame.
"""

from dataclasses import dataclass

from torch import Tensor

from worldmodel.ivideogpt.rollout.cache import KeyValueCache
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder
from worldmodel.ivideogpt.tokenizer.context import Context


@dataclass(frozen=True)
class ImaginedState:
    """State of R rollouts after ``frame`` imagined frames.

    The cache is written in place, so a state can be stepped once; fork it to continue it twice.
    """

    decoder: CachedDecoder
    cache: KeyValueCache
    codes: Tensor  # int64 [B, C, N], of the contexts
    encoded: Context  # input of the encoder of future frames
    features: Context  # input of the decoder of future frames
    recent: Tensor  # uint8 [R, C, 3, side, side]: the goal, if there is one, and the newest frames
    robot: Tensor | None  # [R, P]: the robot's state at the newest frame
    frame: int = 0
    anchor: int = 0  # frames imagined before the context was last encoded
    tokens: Tensor | None = None  # int64 [R, n] of the newest frame after the context; None: there is none

    @property
    def rows(self) -> int:
        """R."""
        return self.cache.keys.shape[1]
