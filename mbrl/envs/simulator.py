"""One Meta-World task with pure resets: reset number e does not depend on earlier episodes."""

from __future__ import annotations

import copy
import difflib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mbrl.errors import UserError

FloatArray = npt.NDArray[np.float64]
Snapshot = dict[str, Any]

MAX_EPISODE_STEPS = 500  # env steps, as in Meta-World
STATE_DIM = 39

# Arrays of the model that Meta-World's tasks change at a reset. mj_getState does not include them.
_MODEL_ARRAYS = ("site_pos", "body_pos", "body_quat", "geom_pos")
_VALUE_TYPES = (bool, int, float, str, np.ndarray, np.generic, dict, list, tuple, type(None))


def task_names() -> list[str]:
    """The 50 tasks, without their version suffix."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return [name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS]


def resolve_task(task: str) -> str:
    """Meta-World's name of a task: "door-lock" -> "door-lock-v3".

    Raises:
        UserError: there is no such task; the message names the nearest.
    """
    names = task_names()
    name = task.removesuffix("-v3")
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise UserError(f"unknown Meta-World task {task!r}: did you mean {', '.join(close)}?")
    return f"{name}-v3"


class Simulator:
    """Meta-World's environment (observable goal, reward v2) with seeded, pure resets and exact snapshots.

    Args:
        task: any of the 50 tasks, with or without "-v3".
        seed: with `worker` and the number of the episode it determines the goal; nothing else does.
        worker: number of the worker process, 0 or more.
        goals: `fresh` draws the goal of each episode from the whole range of the task; `fixed` chooses one of the 50
            goals of `metaworld.MT1(task, seed)`, which all workers share.

    Attributes:
        observation: the last observation, float64 [39].
        raw: Meta-World's environment.
    """

    observation: FloatArray

    def __init__(self, task: str, seed: int, worker: int, goals: Literal["fresh", "fixed"]) -> None:
        import metaworld
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        from mbrl.envs.metaworld_steps import with_cheap_steps

        name = resolve_task(task)
        self.seed, self.worker = seed, worker
        self._tasks = metaworld.MT1(name, seed=seed).train_tasks if goals == "fixed" else None
        self.raw: Any = with_cheap_steps(ALL_V3_ENVIRONMENTS[name])()
        self.raw._set_task_called = True
        self.raw._partially_observable = False
        # The cached space was computed with a hidden goal, and would clip the goal to zeros.
        del self.raw.sawyer_observation_space
        # This reset creates the attributes that are views into MjData.
        self._reset_raw(np.random.default_rng(0))
        self._initial = self.snapshot()

    def reset(self, episode: int) -> FloatArray:
        """Start episode number `episode`; returns the observation, float64 [39]."""
        self.restore(self._initial)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.worker, episode]))
        if self._tasks is None:
            return self._reset_raw(rng)
        self.raw.set_task(self._tasks[int(rng.integers(len(self._tasks)))])
        return self._observe_reset()

    def step(self, action: npt.NDArray[np.float32]) -> tuple[FloatArray, float, bool]:
        """Take one control step of 5 physics steps.

        Args:
            action: float32 [4] in [-1, 1].

        Returns:
            The observation, float64 [39]; the reward, in [0, 10]; and whether this step succeeded.
        """
        self.raw.curr_path_length = 0  # It refuses step 501, which a plan or a rollout from a late state may take.
        observation, reward, _, _, info = self.raw.step(action)
        self.observation = observation
        return observation, float(reward), bool(info["success"])

    def snapshot(self) -> Snapshot:
        """Copies of everything that later steps depend on, as arrays and scalars."""
        import mujoco

        spec = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(self.raw.model, spec))
        mujoco.mj_getState(self.raw.model, self.raw.data, physics, spec)
        model = {name: getattr(self.raw.model, name).copy() for name in _MODEL_ARRAYS}
        attributes = {key: value for key, value in vars(self.raw).items() if self._is_value(value)}
        return {
            "physics": physics,
            "model": model,
            "attributes": copy.deepcopy(attributes),
            "observation": self.observation.copy(),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of this simulator, or of another simulator of the same task."""
        import mujoco

        model, data = self.raw.model, self.raw.data
        for name in _MODEL_ARRAYS:
            getattr(model, name)[:] = snapshot["model"][name]
        vars(self.raw).update(copy.deepcopy(snapshot["attributes"]))
        spec = mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(model, data, snapshot["physics"], spec)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, snapshot["physics"], spec)  # mj_forward changed the solver's warm start
        self.observation = snapshot["observation"].copy()

    def close(self) -> None:
        """Free the simulator."""
        self.raw.close()

    def _reset_raw(self, rng: np.random.Generator) -> FloatArray:
        """Draw a goal that the task accepts and reset to it with the goal frozen, both as in MT1."""
        raw = self.raw
        raw.np_random = rng
        raw._freeze_rand_vec, raw.seeded_rand_vec = False, True
        return self._observe_reset()  # Its first call of `reset_model` draws the goal and freezes it for the second.

    def _observe_reset(self) -> FloatArray:
        self.observation, _ = self.raw.reset()
        return self.observation

    def _is_value(self, value: object) -> bool:
        """Whether a snapshot copies an attribute: scalars and arrays, except views into MjData."""
        if isinstance(value, np.ndarray):
            return not _is_simulator_memory(value)
        return isinstance(value, _VALUE_TYPES)


def _is_simulator_memory(array: npt.NDArray[Any]) -> bool:
    """Whether the memory of an array belongs to MuJoCo: then no array in its chain of bases owns its data."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.owndata:
            return False
        base = base.base
    return base is not None and not isinstance(base, (bytes, bytearray, memoryview))
