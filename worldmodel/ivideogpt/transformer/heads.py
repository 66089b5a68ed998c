"""Conditioning inputs that are added at a frame's slot token, and output heads that read its last token.

F future frames, A action width, P numbers of the robot's state, D model width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from worldmodel.ivideogpt.transformer.proprioception import Proprioception


@dataclass(frozen=True)
class Heads:
    """Linear layers beside the decoder; None where a model has none."""

    action: nn.Linear | None  # A -> D
    reward: nn.Linear | None  # D -> 1
    proprioception: Proprioception | None

    def condition(self, actions: Tensor | None, states: Tensor | None) -> Tensor | None:
        """Conditioning embedding of frames: from the actions [..., A] that lead to them and the states [..., P] before.

        Returns:
            [..., D]; None for a model that reads neither.

        Raises:
            ValueError: actions or states that the model reads are missing, or of another width.
        """
        conditioning = None
        if self.action is not None:
            conditioning = self.action(_of_width("actions", actions, self.action.in_features))
        if self.proprioception is not None:
            read = self.proprioception.embed(_of_width("states", states, self.proprioception.size))
            conditioning = read if conditioning is None else conditioning + read
        return conditioning

    def rewards(self, hidden: Tensor) -> Tensor | None:
        """Symlog rewards [..., 1] of frames from `hidden` [..., D], see VideoTransformer.frame_states."""
        return None if self.reward is None else self.reward(hidden).float()

    def states(self, hidden: Tensor, states: Tensor | None) -> Tensor | None:
        """Robot states [..., P] at frames, from `hidden` as for `rewards` and the robot states [..., P] before."""
        return None if self.proprioception is None or states is None else self.proprioception.next(hidden, states)


def _of_width(name: str, values: Tensor | None, width: int) -> Tensor:
    if values is None or values.shape[-1] != width:
        given = "none" if values is None else f"{list(values.shape)}"
        raise ValueError(f"this model reads {name} of width {width}; given: {given}")
    return values
