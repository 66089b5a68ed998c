"""Drivers that can steer instead of a person: the run's policy, and Meta-World's scripted policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from torchrl.data import Composite, TensorSpec

from mbrl.collecting.acting import Acting
from mbrl.data.episodes import INITIAL
from mbrl.errors import UserError
from mbrl.play.session import Session
from mbrl.targets import make
from policies.base import Policy

STATE = 39  # entries of `state` that Meta-World's scripts read; a one-hot of the task may follow


class Driver:
    """Chooses the next action of a session.

    Attributes:
        imagined: whether it sees the imagined world.
    """

    imagined = False

    def __call__(self, session: Session) -> npt.NDArray[np.float32]:
        """The action, float32 [A], at the session's current moment."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the steps so far. Called at each hand-over, and when the session goes to another moment."""
        # Not abstract, because most drivers remember nothing.


class PolicyDriver(Driver):
    """A trained policy, acting on what either world shows.

    A policy with memory starts with none at the hand-over, or with what the newest steps and the first frame of the
    episode give (`Policy.recall`).

    Args:
        policy: acts.
        stack: K, the images in its `frames`.
        imagined: whether it sees the imagined world.
    """

    def __init__(self, policy: Acting, stack: int, *, imagined: bool) -> None:
        self._policy, self._stack, self.imagined, self._anew = policy, stack, imagined, True

    def __call__(self, session: Session) -> npt.NDArray[np.float32]:
        moment = session.moment
        observed = {**moment.real, **moment.imagined} if self.imagined else dict(moment.real)
        observed["frames"] = session.frames(self._stack, imagined=self.imagined)
        if self._anew:
            self._policy.recall(self._history(session))
            self._anew = False
        action: torch.Tensor = self._policy(observed)
        return action.reshape(-1).cpu().numpy().astype(np.float32)

    def _history(self, session: Session) -> TensorDict:
        """The newest steps [T], as many as the stack has images but two at least; the action of the last is zeros."""
        length = max(2, self._stack)
        pixels = torch.from_numpy(session.frames(length, imagined=self.imagined)).unflatten(0, (length, 3))
        taken = np.asarray([moment.action for moment in session.moments[1 : session.cursor + 1]], np.float32)
        taken, action = taken.reshape(-1, session.actions)[1 - length :], torch.zeros(length, session.actions)
        action[-1 - len(taken) : -1] = torch.from_numpy(taken)
        first = torch.from_numpy(session.initial).expand_as(pixels)
        return TensorDict({"pixels": pixels, "action": action, INITIAL: first}, batch_size=[length])

    def reset(self) -> None:
        self._policy.reset()
        self._anew = True


class ScriptDriver(Driver):
    """Meta-World's scripted policy, which reads the real simulator's state.

    Args:
        tasks: the tasks of the environment, in the order of its one-hot; one in an environment of a single task.
        observation_spec: of the environment.
        action_spec: of the environment.
    """

    def __init__(self, tasks: Sequence[str], observation_spec: Composite, action_spec: TensorSpec) -> None:
        self._tasks, self._specs = tasks, {"observation_spec": observation_spec, "action_spec": action_spec}
        self._scripts: dict[str, Policy] = {}

    def __call__(self, session: Session) -> npt.NDArray[np.float32]:
        state, task = session.moment.real["state"], session.moment.real.get("task")
        name = self._tasks[0 if task is None else int(task.argmax())]
        if name not in self._scripts:
            settings = {"_target_": "policies.scripted.ScriptedPolicy", "task": name}
            self._scripts[name] = make(settings, Policy, place="the scripted policy", **self._specs)
        actor = self._scripts[name].actor
        with torch.no_grad():
            action: torch.Tensor = actor(torch.from_numpy(state[:STATE]).float())
        return action.numpy()

    def reset(self) -> None:
        self._scripts.clear()  # Scripts may remember what they did before.


def policy_drivers(policy: Acting, stack: int, predicted: Sequence[str]) -> dict[str, Driver]:
    """The drivers that a policy makes, by name: on real frames, and on imagined ones if they are all that it reads.

    Args:
        policy: acts.
        stack: K, the images in its `frames`.
        predicted: observations that the world model predicts.
    """
    drivers: dict[str, Driver] = {"policy": PolicyDriver(policy, stack, imagined=False)}
    read = {"pixels" if key == "frames" else key for key in policy.observations}
    if read <= {*predicted, "task"}:
        drivers["policy on imagined frames"] = PolicyDriver(policy, stack, imagined=True)
    return drivers


def find_driver(drivers: dict[str, Driver], name: str) -> Driver:
    """The driver of a name.

    Raises:
        UserError: there is none.
    """
    if name not in drivers:
        raise UserError(f"there is no driver {name!r}: there are {', '.join(drivers) or 'none'}")
    return drivers[name]
