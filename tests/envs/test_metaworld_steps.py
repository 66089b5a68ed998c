"""The cheaper step and reset of Meta-World: every bit is that of its own class."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from mbrl.envs import metaworld_steps
from mbrl.envs.simulator import Simulator, task_names

# The gripper grasps (push), two objects (stick-pull), a reset of its own (window-close), and one on which leaving out
# two of three calls of reset_model shows (door-lock).
TASKS = ("push", "stick-pull", "window-close", "door-lock")
ALL = pytest.param(None, marks=pytest.mark.slow, id="all-50")


class Plain(Simulator):
    """Meta-World's own class, and a call of `reset_model` that only draws the goal."""

    def _reset_raw(self, rng: np.random.Generator) -> np.ndarray:
        self.raw.np_random = rng
        self.raw._freeze_rand_vec, self.raw.seeded_rand_vec = False, True
        self.raw.reset_model()
        self.raw._freeze_rand_vec = True
        return self._observe_reset()


def pair(task: str, goals: Any = "fresh") -> tuple[Simulator, Simulator]:
    """The simulator, and the same on Meta-World's own class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metaworld_steps, "with_cheap_steps", lambda env_class: env_class)
        plain = Plain(task, 3, 1, goals)
    ours = Simulator(task, 3, 1, goals)
    assert type(plain.raw).__module__.startswith("metaworld.envs.") and type(ours.raw) is not type(plain.raw)
    return ours, plain


def bits(value: Any) -> Any:
    """A value with its types, such that == compares bits."""
    if isinstance(value, dict):
        return {key: bits(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [bits(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return type(value), repr(value)


def touched(simulator: Simulator) -> list[int]:
    """Geoms on which the gripper presses."""
    raw = simulator.raw
    return [geom for geom in np.unique(raw.data.contact.geom).tolist() if raw.touching_object(geom)]


def compare(task: str, goals: str = "fresh") -> bool:
    """Play random actions to either bound of the hand's space, then the script; returns whether the gripper held."""
    from metaworld.policies import ENV_POLICY_MAP

    both, script, held = pair(task, goals), ENV_POLICY_MAP[f"{task}-v3"](), False
    assert bits(both[0].snapshot()) == bits(both[1].snapshot()), task
    for episode, (drift, moves) in enumerate(((1, 60), (-1, 60), (0, 120))):
        rng = np.random.default_rng(episode)
        observation, other = (simulator.reset(episode) for simulator in both)
        assert bits(observation) == bits(other), (task, episode)
        assert bits(both[0].snapshot()) == bits(both[1].snapshot()), (task, episode)
        for move in range(moves):
            # Beyond the range: Meta-World clips the first three numbers itself.
            random = rng.uniform([*[drift - 1] * 3, -1], [*[drift + 1] * 3, 1])
            action = script.get_action(observation).clip(-1, 1) if drift == 0 else random
            ours, plain = (simulator.step(action.astype(np.float32)) for simulator in both)
            assert bits(ours) == bits(plain), (task, episode, move)
            observation = ours[0]
            if move % 4 == 0:
                geoms, others = (touched(simulator) for simulator in both)
                assert geoms == others, (task, episode, move)
                held |= bool(geoms)
        assert bits(both[0].snapshot()) == bits(both[1].snapshot()), (task, episode)
    return held


@pytest.mark.parametrize("task", [*TASKS, ALL])
def test_every_bit_is_that_of_its_own_class(task: str | None) -> None:
    held = {name: compare(name) for name in ([task] if task else task_names())}
    assert held.get("push", True) and held.get("stick-pull", True), "the gripper must hold the object for this test"


def test_and_with_fixed_goals() -> None:
    compare("door-lock", "fixed")


def test_a_snapshot_of_its_own_class_fits() -> None:
    ours, plain = pair("push")
    plain.reset(4)
    ours.restore(plain.snapshot())
    assert bits(ours.snapshot()) == bits(plain.snapshot())
    move = np.full(4, 0.5, np.float32)
    assert bits(ours.step(move)) == bits(plain.step(move))


def test_it_is_pickled_as_its_own_class_is() -> None:
    both = pair("push")
    for simulator in both:
        simulator.reset(0)
    ours, plain = (pickle.loads(pickle.dumps(simulator.raw)) for simulator in both)
    assert type(ours).__mro__[1:3] == type(both[0].raw).__mro__[1:3] and isinstance(ours, type(plain))
    move = np.full(4, 0.5, np.float32)
    assert bits(ours.step(move)) == bits(plain.step(move))
