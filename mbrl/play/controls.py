"""Which keys and buttons move an environment, so that the gripper goes where the arrow points."""

from __future__ import annotations

from typing import Any, NamedTuple

GRIPPER = 3  # the entry of Meta-World's actions that closes the gripper
KEYS = [("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"), ("KeyS", "KeyW"), ("KeyA", "KeyD")]


class Control(NamedTuple):
    """One entry of the action.

    Attributes:
        entry: its index.
        name: what it moves.
        less: name of its negative direction. more: of its positive one.
        keys: codes of the keys for them (`KeyboardEvent.code`: places on the keyboard, which every layout has).
        sign: 1, or -1 where the first key is the positive direction.
        stays: whether the slider stays where it is left.
    """

    entry: int
    name: str
    less: str
    more: str
    keys: tuple[str, str]
    sign: int = 1
    stays: bool = False


def controls(env: Any, actions: int) -> list[dict[str, Any]]:
    """The controls of an environment, in the order in which they are shown.

    Args:
        env: the environment. `picture_axes` names the entries of the action, with their signs, that go right and up (or
            away) in its images.
        actions: A.
    """
    axes = getattr(env, "picture_axes", None)
    if axes is None:
        made = [_plain(index) for index in range(actions)]
    else:
        (across, right), (along, up) = axes
        made = [
            Control(across, "sideways", "left", "right", KEYS[0], right),
            Control(along, "depth", "towards", "away", KEYS[1], up),
        ]
        if actions > GRIPPER:
            made += [
                Control(2, "height", "down", "up", KEYS[2]),
                Control(GRIPPER, "gripper", "open", "close", KEYS[3], stays=True),
            ]
    return [control._asdict() for control in made]


def _plain(index: int) -> Control:
    return Control(index, f"action {index + 1}", "less", "more", KEYS[index] if index < len(KEYS) else ("", ""))
