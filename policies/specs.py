"""Sizes of observations and actions from specs; a ValueError if a policy cannot use them."""

from __future__ import annotations

from torchrl.data import Composite, TensorSpec


def frames_shape(observation_spec: Composite, policy: str) -> tuple[int, int]:
    """Channels 3K and resolution R of `frames`; `policy` is the name for error messages."""
    keys = [str(key) for key in observation_spec]
    if "frames" not in keys:
        raise ValueError(
            f"{policy} learns from frames, not {', '.join(keys)}: set env.pixels=true and env.frame_stack=3"
        )
    shape = observation_spec["frames"].shape
    if len(shape) < 3 or shape[-1] != shape[-2]:
        raise ValueError(f"{policy} needs square frames [3K, R, R], not {tuple(shape)}: see env.resolution")
    return shape[-3], shape[-1]


def pixel_keys(observation_spec: Composite) -> list[str]:
    """Keys that a policy from pixels reads: `frames`, and `task` [N] in an environment of several tasks."""
    return ["frames", *["task"] * (task_size(observation_spec) > 0)]


def task_size(observation_spec: Composite) -> int:
    """N of the one-hot `task` [N]; 0 in an environment of a single task."""
    return observation_spec["task"].shape[-1] if "task" in [str(key) for key in observation_spec] else 0


def state_size(observation_spec: Composite, policy: str) -> int:
    """S, width of `state`; `policy` is the name for error messages."""
    keys = [str(key) for key in observation_spec]
    if "state" not in keys:
        raise ValueError(f"{policy} learns from state: this environment gives only {', '.join(keys)}")
    shape = observation_spec["state"].shape
    if len(shape) != 1:
        raise ValueError(f"{policy} needs a flat state [S], not {tuple(shape)}")
    return shape[0]


def action_size(action_spec: TensorSpec, policy: str) -> int:
    """A, width of actions, which must be continuous in [-1, 1]."""
    space = action_spec.space
    if not hasattr(space, "low") or not bool((space.low == -1).all() and (space.high == 1).all()):
        raise ValueError(f"{policy} needs continuous actions in [-1, 1], not {action_spec}: rescale them in the env")
    return action_spec.shape[-1]
