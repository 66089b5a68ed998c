"""A session: the real environment and a world model, stepped side by side under the same actions.

    env = run.make_env(pixels=True)
    session = Session(env, run.world_model)
    session.reset(goal=3)
    moment = session.step([0.5, 0.0, 0.0, 1.0])     # moment.real["pixels"], moment.imagined["pixels"]
    session.rewind(4)                               # to an earlier moment; the next step makes a branch there
    session.back_to_reality()                       # the imagined world starts anew from the real frames

C context frames, R resolution, S state, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from torchrl.envs import EnvBase

from mbrl.errors import UserError
from mbrl.play.imagined_world import ImaginedWorld
from mbrl.play.recording import to_records
from mbrl.play.timeline import Branch, Moment, Observation, Timeline
from worldmodel.base import WorldModel


class Session:
    """The real world beside the imagined one. Both can be rewound to any moment and branch there.

    Args:
        env: an environment with `pixels` of the world model's resolution, `snapshot` and `restore`.
        world_model: predicts pixels; in eval mode.
        success_bonus: what the rewards of `env` contain at success, and recorded episodes do not.
        seed: seed of the sampling in the world model.

    Raises:
        UserError: the world model does not predict pixels, needs a goal, or does not fit the environment.
    """

    def __init__(self, env: EnvBase, world_model: WorldModel, *, success_bonus: float = 0.0, seed: int = 0) -> None:
        self._owner, self.env = env, env.unwrapped
        self.model, self.success_bonus = world_model, success_bonus
        self.actions: int = env.action_spec.shape[-1]
        check_fits(world_model, env)
        self._imagined = ImaginedWorld(world_model, self.env, self.actions)
        self._seeds = np.random.default_rng(seed)
        self._env_at: Moment | None = None  # the moment whose snapshot the environment is in
        self.goal = 0
        self.reset()

    # ---------------------------------------------------------------- starting
    def reset(self, goal: int | None = None) -> Moment:
        """Start episode number `goal` of the environment; None for the one after the last.

        Where the world model needs more than one real frame, the environment first stands still for C - 1 steps.
        """
        self.goal = self.goal if goal is None else goal
        self.env.seek(self.goal)
        observation, _ = self.env.reset()
        self.goal += 1
        self._imagined.initial = observation["pixels"]
        return self._begin(observation, np.zeros((self.model.context_length - 1, self.actions), np.float32))

    def start(
        self,
        snapshot: dict[str, Any],
        actions: npt.NDArray[np.float32],
        initial: npt.NDArray[np.uint8] | None = None,
    ) -> Moment:
        """Start from a state of the real environment.

        Args:
            snapshot: of this environment or of another one of the same task.
            actions: float32 [N, A] to take from there before the imagined world starts; where N is less than C - 1,
                the environment then stands still.
            initial: the first image of the episode that the state is from, uint8 [3, R, R], for a world model that
                reads it. None: that of the state.
        """
        self.env.restore(snapshot)
        self._imagined.initial = self.env.observe()["pixels"] if initial is None else initial
        idle = np.zeros((max(0, self.model.context_length - 1 - len(actions)), self.actions), np.float32)
        return self._begin(self.env.observe(), np.concatenate([actions.reshape(-1, self.actions), idle]))

    def _begin(self, observation: Observation, actions: npt.NDArray[np.float32]) -> Moment:
        self._env_at = Moment(self.env.snapshot(), observation, observation)
        moments = [self._env_at]
        for action in actions:
            if moments[-1].over:
                raise UserError("the episode ends before the world model has its context: start at an earlier step")
            moments.append(self._real_step(moments[-1], action))
        moments[-1].anchor = "real"
        self.first = len(moments) - 1
        self._timeline = Timeline(moments)
        return moments[-1]

    def borrow(self) -> Any:
        """The environment, to be put into other states. Before its next step the session puts it back."""
        self._env_at = None
        return self.env

    def close(self) -> None:
        """Free the environment."""
        self._owner.close()

    # ---------------------------------------------------------------- where it stands
    @property
    def branch_number(self) -> int:
        """Number of the branch that the session is in."""
        return self._timeline.current

    @property
    def branches(self) -> list[Branch]:
        """All branches, in the order in which they were made."""
        return list(self._timeline.branches.values())

    @property
    def cursor(self) -> int:
        """Index in `moments` of the moment that the session is at, from `first` on."""
        return self._timeline.cursor

    @property
    def moments(self) -> list[Moment]:
        """The moments of the current branch. Those before `first` are the context, and real in both worlds."""
        return self._timeline.branch.moments

    @property
    def moment(self) -> Moment:
        """The moment that the session is at."""
        return self.moments[self.cursor]

    @property
    def initial(self) -> npt.NDArray[np.uint8]:
        """The first image of the real episode, uint8 [3, R, R]."""
        return self._imagined.initial

    @property
    def horizon(self) -> int | None:
        """Steps after which the imagined world starts anew from its own newest frames; None: it never does."""
        return self.model.trained_horizon

    # ---------------------------------------------------------------- acting
    @torch.no_grad()
    def step(self, action: Sequence[float] | npt.NDArray[np.float32]) -> Moment:
        """Take one step in both worlds. If the session is not at the end of its branch, this makes a branch.

        Args:
            action: [A], clipped to [-1, 1].

        Raises:
            UserError: the real episode is over, or the action is not A finite numbers.
        """
        taken = np.asarray(action, np.float32)
        if taken.shape != (self.actions,) or not np.isfinite(taken).all():
            raise UserError(f"an action has {self.actions} finite numbers: {np.asarray(action).tolist()} is none")
        if self.moment.over:
            raise UserError(f"the real episode is over after {self.cursor} steps: reset, rewind or start elsewhere")
        if self.cursor < len(self.moments) - 1:
            self.branch()
        after = self._real_step(self.moment, taken.clip(-1.0, 1.0))
        after.seed = int(self._seeds.integers(2**63))
        self._imagined.step(self.moments, self.cursor, after)
        self.moments.append(after)
        self._timeline.cursor += 1
        return after

    def _real_step(self, before: Moment, action: npt.NDArray[np.float32]) -> Moment:
        """The real half of a moment; the imagined one is the real observation."""
        if self._env_at is not before:
            self.env.restore(before.snapshot)
        real, reward, terminated, truncated, info = self.env.step(action)
        success = bool(info["success"].any())
        self._env_at = Moment(
            self.env.snapshot(), real, real, action, float(reward), None, success, bool(terminated), bool(truncated)
        )
        return self._env_at

    # ---------------------------------------------------------------- going elsewhere
    def rewind(self, index: int) -> Moment:
        """Go to another moment of the current branch; nothing is lost.

        Raises:
            UserError: there is none of this index, or it is part of the context.
        """
        if not self.first <= index < len(self.moments):
            raise UserError(f"there is no step {index} to go to: there are {self.first} to {len(self.moments) - 1}")
        self._timeline.cursor = index
        return self.moment

    def branch(self, index: int | None = None) -> int:
        """Make a branch at a moment of the current branch, by default at the one where the session is, and enter it.

        Returns:
            The number of the branch.
        """
        if index is not None:
            self.rewind(index)
        return self._timeline.fork(self.cursor).number

    def select(self, number: int) -> Moment:
        """Go to the same step of another branch, or to its end where it is shorter."""
        branch = self._timeline.find(number)
        self._timeline.current = number
        self._timeline.cursor = min(self.cursor, len(branch.moments) - 1)
        return self.moment

    def close_branch(self, number: int) -> None:
        """Forget another branch."""
        self._timeline.close(number)

    def back_to_reality(self) -> Moment:
        """Start the imagined world anew from the newest real frames, at the moment where the session is."""
        if self.cursor < len(self.moments) - 1:
            self.branch()
        moment = self.moment
        anew = replace(moment, imagined=moment.real, depth=0, since=0, anchor="real", state=None)
        if self._env_at is moment:
            self._env_at = anew
        self.moments[self.cursor] = anew
        return anew

    def set_temperature(self, value: float) -> None:
        """Sample what is imagined from now on with this temperature, 0 to 10.

        Raises:
            UserError: it is out of range, or the world model has none.
        """
        if self.model.temperature is None:
            raise UserError("this world model has no temperature")
        if not 0 <= value <= 10:
            raise UserError(f"temperature is {value}: it must be 0 to 10")
        self.model.set_temperature(value)

    # ---------------------------------------------------------------- reading
    def frames(self, stack: int, *, imagined: bool = False) -> npt.NDArray[np.uint8]:
        """The newest images up to the current moment, oldest first, as an environment stacks them.

        Args:
            stack: K.
            imagined: whether they are those of the imagined world.

        Returns:
            uint8 [3K, R, R]; before the first image there are copies of it.
        """
        rows = [self.moments[max(0, self.cursor + back)] for back in range(1 - stack, 1)]
        return np.concatenate([(row.imagined if imagined else row.real)["pixels"] for row in rows])

    def records(self) -> TensorDict:
        """The real steps of the current branch up to the current moment, as a record episode (`mbrl.data.episodes`).

        Raises:
            UserError: no step was taken yet.
        """
        return to_records(self.moments[: self.cursor + 1], self.success_bonus)


def check_fits(model: WorldModel, env: EnvBase) -> None:
    """Check that a world model can be steered beside an environment.

    Raises:
        UserError: it predicts no pixels or needs a goal, or resolution or actions differ.
    """
    if "pixels" not in model.observations:
        raise UserError("this world model predicts states: mbrl play shows one that predicts pixels")
    if model.goal_conditioned:
        raise UserError("this world model is conditioned on a goal frame, which mbrl play does not have")
    keys = env.observation_spec.keys()
    side = env.observation_spec["pixels"].shape[-1] if "pixels" in keys else 0
    if side != model.resolution:
        raise UserError(f"this world model is made for {model.resolution} pixels, and the environment has {side}")
    width = env.action_spec.shape[-1]
    if model.action_dim not in (0, width):
        raise UserError(f"this world model is made for actions of {model.action_dim}, and the environment has {width}")
    if not hasattr(env.unwrapped, "restore"):
        raise UserError("this environment cannot be restored: mbrl play needs one with snapshot and restore")
