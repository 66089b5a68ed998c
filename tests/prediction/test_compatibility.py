"""Which models fit which environments and policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torchrl.envs import EnvBase

from mbrl.envs.toy import make_env
from mbrl.errors import UserError
from mbrl.prediction.compatibility import env_options, require_fit, require_readable, require_same_env
from tests.fakes import CountingWorldModel


def model(**attributes: Any) -> CountingWorldModel:
    """A model of the toy with 16 pixels, but for some attributes."""
    made = CountingWorldModel()
    for name, value in {"resolution": 16, "action_dim": 2, **attributes}.items():
        setattr(made, name, value)
    return made


@pytest.fixture(scope="module")
def env() -> Iterator[EnvBase]:
    made = make_env(resolution=16)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"predicts_reward": False}, "predicts no rewards"),
        ({"goal_conditioned": True}, "needs a goal frame"),
        ({"action_dim": 0}, "reads no actions"),
        ({"action_dim": 4}, "RUN has actions of width 2, and the model is made for 4"),
        ({"resolution": 64}, "RUN has frames of 16x16, and the model is made for 64x64"),
        ({"observations": ("state",), "state_dim": 39}, "RUN has a state of width 4, and the model predicts 39"),
        ({"observations": ("pixels", "task"), "tasks": 2}, "RUN: its environment gives no task"),
        ({"context_keys": ("snapshot",)}, "RUN: its environment gives no snapshot"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(env: EnvBase, attributes: dict[str, Any], message: str) -> None:
    require_fit(model(), env, "RUN")
    with pytest.raises(UserError, match=message):
        require_fit(model(**attributes), env, "RUN")


def test_what_the_environment_must_give() -> None:
    assert env_options(model()) == {"pixels": True}
    assert env_options(model(observations=("state",))) == {}
    assert env_options(model(context_keys=("snapshot",))) == {"pixels": True, "snapshots": True}


@pytest.mark.parametrize(
    ("read", "missing"), [(("state",), "state"), (("frames", "state"), "state"), (("task",), "task")]
)
def test_a_policy_reads_what_the_model_predicts(read: tuple[str, ...], missing: str) -> None:
    require_readable(model(), ("frames", "pixels"), "RUN")
    require_readable(model(), (), "RUN")
    with pytest.raises(UserError, match=f"the policy of RUN reads {missing}, and this world model predicts pixels"):
        require_readable(model(), read, "RUN")


def test_environments_are_the_same_but_for_what_a_policy_may_choose() -> None:
    one = {"_target_": "a", "task": "reach", "camera": "corner", "resolution": 64, "frame_stack": 3}
    require_same_env(one, "A", {**one, "frame_stack": 1, "snapshots": True, "success_bonus": 5.0}, "B", pixels=True)
    for key, value in {"task": "push", "camera": "corner2", "resolution": 84, "action_repeat": 2}.items():
        with pytest.raises(UserError, match=rf"A has env\.{key}=.* and B env\.{key}={value}: a policy is imagined in"):
            require_same_env(one, "A", {**one, key: value}, "B", pixels=True)
    require_same_env(one, "A", {**one, "camera": "corner2", "resolution": 84}, "B", pixels=False)
    with pytest.raises(UserError, match=r"A has env\.target=a and B env\.target=b"):
        require_same_env(one, "A", {**one, "_target_": "b"}, "B", pixels=False)
