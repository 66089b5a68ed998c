"""History of a session: a tree of moments, in branches that share their beginnings.

R resolution, S state, A action.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mbrl.errors import UserError

Observation = dict[str, npt.NDArray[Any]]
Anchor = Literal["real", "imagined"]

MAX_BRANCHES = 8


@dataclass
class Moment:
    """One step of both worlds.

    Attributes:
        snapshot: the exact state of the real environment, see its `snapshot`.
        real: its observation: `pixels` uint8 [3, R, R], and `state` float32 [S] and `task` where it has them.
        imagined: what the world model predicted of these; the real observation where `anchor` is `real`.
        action: float32 [A] that led here; None at the first moment.
        reward: real reward of that action. imagined_reward: the predicted one; None where nothing was predicted.
        success: whether the action solved the task.
        terminated: whether the episode ended here by a termination. truncated: by its length.
        measures: uncertainty estimates of the predicted step, by name.
        seed: seed of the sampling of the predicted step. temperature: its temperature; None without one.
        depth: imagined steps since the newest real frame that the imagined world started from.
        since: imagined steps since the world model last encoded a context.
        anchor: the world model starts anew here, from real frames or from its own newest ones; None: it goes on.
        state: state of the world model at this moment, or None. It can be computed anew, see `Session`.
    """

    snapshot: dict[str, Any]
    real: Observation
    imagined: Observation
    action: npt.NDArray[np.float32] | None = None
    reward: float = 0.0
    imagined_reward: float | None = None
    success: bool = False
    terminated: bool = False
    truncated: bool = False
    measures: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    temperature: float | None = None
    depth: int = 0
    since: int = 0
    anchor: Anchor | None = None
    state: Any = None

    @property
    def over(self) -> bool:
        """Whether the real episode ended here."""
        return self.terminated or self.truncated


@dataclass
class Branch:
    """One line of moments from the start of the session.

    Attributes:
        number: identifies it; never used again.
        parent: number of the branch that it was forked from; None for the first one.
        fork: index of the last moment that it shares with its parent.
        moments: all its moments, the shared ones included.
    """

    number: int
    parent: int | None
    fork: int
    moments: list[Moment]


class Timeline:
    """All branches, and where the session stands.

    Attributes:
        branches: by number, in the order in which they were made.
        current: number of the branch that the session is in.
        cursor: index of the moment in it that the session is at.
    """

    def __init__(self, moments: list[Moment]) -> None:
        self.branches = {0: Branch(0, None, 0, moments)}
        self.current, self.cursor, self._made = 0, len(moments) - 1, 1

    @property
    def branch(self) -> Branch:
        """The branch that the session is in."""
        return self.branches[self.current]

    def fork(self, index: int) -> Branch:
        """Make a branch that shares the moments up to `index` with the current one, and go to its end.

        Raises:
            UserError: there are MAX_BRANCHES already.
        """
        if len(self.branches) >= MAX_BRANCHES:
            raise UserError(f"{MAX_BRANCHES} branches are the most: close one first")
        branch = Branch(self._made, self.current, index, self.branch.moments[: index + 1])
        self.branches[branch.number] = branch
        self.current, self.cursor, self._made = branch.number, index, self._made + 1
        return branch

    def find(self, number: int) -> Branch:
        """The branch of a number.

        Raises:
            UserError: there is none.
        """
        if number not in self.branches:
            raise UserError(f"there is no branch {number}: there are {', '.join(map(str, self.branches))}")
        return self.branches[number]

    def close(self, number: int) -> None:
        """Forget a branch. Moments that others share stay.

        Raises:
            UserError: there is none of this number, or the session is in it.
        """
        closed = self.find(number)
        if number == self.current:
            raise UserError(f"the session is in branch {number}: select another one before closing it")
        for other in self.branches.values():
            if other.parent == number:
                other.parent, other.fork = closed.parent, min(other.fork, closed.fork)
        del self.branches[number]
