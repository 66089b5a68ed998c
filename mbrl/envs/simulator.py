"""One Meta-World task whose resets are pure: reset number e never depends on what was played before it."""

from __future__ import annotations

import copy
import difflib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mbrl.errors import UserError

FloatArray = npt.NDArray[np.float64]
Snapshot = dict[str, Any]

MAX_EPISODE_STEPS = 500  # Meta-World's own horizon: a step past it raises
STATE_DIM = 39

# What Meta-World's tasks write in the model at a reset; mj_getState does not cover it.
_MODEL_ARRAYS = ("site_pos", "body_pos", "body_quat", "geom_pos")
_VALUE_TYPES = (bool, int, float, str, np.ndarray, np.generic, dict, list, tuple, type(None))


def task_names() -> list[str]:
    """The 50 tasks, without their version suffix."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return [name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS]


def resolve_task(task: str) -> str:
    """Meta-World's name of a task: "door-lock" -> "door-lock-v3". ValueError where there is none."""
    names = task_names()
    name = task.removesuffix("-v3")
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise UserError(f"unknown Meta-World task {task!r}: did you mean {', '.join(close)}?")
    return f"{name}-v3"


class Simulator:
    """A raw Meta-World environment (goal observable, reward v2) with seeded, pure resets and exact snapshots.

    The goal of episode e is a function of (seed, worker, e) alone. `fresh` draws it anew from the task's
    whole range; `fixed` picks one of the 50 goals that `metaworld.MT1(task, seed)` holds (shared by all
    workers). `observation` is the last one returned.
    """

    observation: FloatArray

    def __init__(self, task: str, seed: int, worker: int, goals: Literal["fresh", "fixed"]) -> None:
        import metaworld
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        name = resolve_task(task)
        self.seed, self.worker = seed, worker
        self._tasks = metaworld.MT1(name, seed=seed).train_tasks if goals == "fixed" else None
        self.raw = ALL_V3_ENVIRONMENTS[name]()
        self.raw._set_task_called = True
        self.raw._partially_observable = False
        del self.raw.sawyer_observation_space  # cached with the goal hidden: it would clip the goal to zeros
        # One reset on a fixed draw, so that the attributes which are views into MjData exist from the start.
        self._reset_raw(np.random.default_rng(0))
        self._initial = self.snapshot()

    def reset(self, episode: int) -> FloatArray:
        """Start episode `episode`; the observation, float64 [39]."""
        self.restore(self._initial)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.worker, episode]))
        if self._tasks is None:
            return self._reset_raw(rng)
        self.raw.set_task(self._tasks[int(rng.integers(len(self._tasks)))])
        return self._observe_reset()

    def step(self, action: npt.NDArray[np.float32]) -> tuple[FloatArray, float, bool]:
        """One control step (5 physics steps): observation [39], reward (0..10), success of this very step."""
        observation, reward, _, _, info = self.raw.step(action)
        self.observation = observation
        return observation, float(reward), bool(info["success"])

    def snapshot(self) -> Snapshot:
        """Everything the future depends on, as plain arrays and scalars (copies)."""
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
        """Go back to `snapshot`, taken here or in another simulator of the same task."""
        import mujoco

        model, data = self.raw.model, self.raw.data
        for name in _MODEL_ARRAYS:
            getattr(model, name)[:] = snapshot["model"][name]
        vars(self.raw).update(copy.deepcopy(snapshot["attributes"]))
        spec = mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(model, data, snapshot["physics"], spec)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, snapshot["physics"], spec)  # forward moved the solver's warm start
        self.observation = snapshot["observation"].copy()

    def close(self) -> None:
        """Free the simulator."""
        self.raw.close()

    def _reset_raw(self, rng: np.random.Generator) -> FloatArray:
        """Draw a goal as MT1 does (one the task accepts), then reset to it as MT1 does (frozen)."""
        raw = self.raw
        raw.np_random = rng
        raw._freeze_rand_vec, raw.seeded_rand_vec = False, True
        raw.reset_model()
        raw._freeze_rand_vec = True
        return self._observe_reset()

    def _observe_reset(self) -> FloatArray:
        self.observation, _ = self.raw.reset()
        return self.observation

    def _is_value(self, value: object) -> bool:
        """Scalars and arrays, except views into MjData: those follow the physics."""
        if isinstance(value, np.ndarray):
            return not _is_simulator_memory(value)
        return isinstance(value, _VALUE_TYPES)


def _is_simulator_memory(array: npt.NDArray[Any]) -> bool:
    """Whether an array's memory belongs to MuJoCo: such an array bottoms out in no numpy owner."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.owndata:
            return False
        base = base.base
    return base is not None and not isinstance(base, (bytes, bytearray, memoryview))
