"""Environments of Gymnasium's registry, and those that a package of the user's own registers there."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator
from torchrl.envs import EnvBase

from mbrl.envs.adapted import Adapted
from mbrl.envs.gym import wrap_gym
from mbrl.envs.pictures import FROM_STATE
from mbrl.errors import UserError
from mbrl.settings.annotations import forwards_to
from policies.ranges import FrameStack

RENDER_MODE = "rgb_array"
MUJOCO = "gymnasium.envs.mujoco.mujoco_env.MujocoEnv"  # by name, because MuJoCo need not be installed


@forwards_to(Adapted)
def make_env(
    id: str,
    seed: int = 0,
    worker: int = 0,
    *,
    task: str = "",
    pixels: bool = True,
    terminates: bool = True,
    frame_stack: FrameStack = 3,
    snapshots: bool = False,
    **settings: Any,
) -> EnvBase:
    """Make an environment of Gymnasium's registry a TorchRL one.

    Args:
        id: its id, such as Pendulum-v1; `my_package:Mine-v0` imports my_package first, which registers Mine-v0.
        seed: as in `Adapted`.
        worker: as in `Adapted`.
        task: not used: it names run folders and curves.
        pixels: as in `Adapted`.
        terminates: as in `Adapted`.
        frame_stack: K, at least 1. At a reset the first image is repeated K times.
        snapshots: must be False: Gymnasium's environments have no exact snapshots.
        settings: the keyword arguments of `Adapted`.

    Raises:
        UserError: the environment is unknown or not supported, or a package is missing.
    """
    found = find_spec(id)
    resolution = int(settings.get("resolution", 64))
    env = _make(found, id, pixels, resolution)
    adapted = Adapted(env, id, terminates, seed, worker, pixels=pixels, **settings)
    if pixels and "state" in adapted.observation_space.keys():  # otherwise the environment observes images itself
        require_rendering(env, id)
    return wrap_gym(adapted, frame_stack, snapshots)


def find_spec(name: str) -> gymnasium.envs.registration.EnvSpec:
    """The registration of an environment; imports the package before a colon first.

    Raises:
        UserError: there is none; the message names the nearest ids, or the package that is missing.
    """
    module, colon, wanted = name.rpartition(":")
    if module:
        try:
            import_module(module)
        except Exception as error:  # A user's own package can raise any error.
            missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
            hint = f"is its folder on PYTHONPATH, or is it to be installed, as with pip install {module}?"
            reason = hint if missing else f"{type(error).__name__}: {error}"
            raise UserError(f"env.id={name}: the package {module} cannot be imported: {reason}") from error
    found = gymnasium.registry.get(wanted)
    if found is None:
        known = [each if _built_in(spec) else f"{module}{colon}{each}" for each, spec in gymnasium.registry.items()]
        close = _nearest(name, known)
        hint = "" if module else " (one of a package is given as env.id=PACKAGE:NAME-v0)"
        raise UserError(f"no environment has env.id={name or repr('')}; nearest: {', '.join(close)}{hint}")
    return found


def _built_in(spec: gymnasium.envs.registration.EnvSpec) -> bool:
    """Whether Gymnasium itself registers an environment, so that no package has to be imported first."""
    entry = spec.entry_point
    return (entry if isinstance(entry, str) else str(getattr(entry, "__module__", ""))).startswith("gymnasium.")


def _nearest(name: str, known: list[str]) -> list[str]:
    """The known ids nearest to a name; those that begin with it come first, such as newer versions."""
    stem = name.rpartition("-v")[0] or name
    same = [each for each in known if each.lower().rpartition("-v")[0] == stem.lower()]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return list(dict.fromkeys([*reversed(same), *close]))[:3] or ["Pendulum-v1"]


def _make(
    found: gymnasium.envs.registration.EnvSpec, name: str, pixels: bool, resolution: int
) -> gymnasium.Env[Any, Any]:
    """The environment without its own time limit, which `Adapted` sets."""
    try:
        options = _rendering(found.entry_point, resolution) if pixels else {}
        return gymnasium.make(found, max_episode_steps=-1, disable_env_checker=True, **options)
    except ModuleNotFoundError as error:
        raise UserError(
            f"env.id={name} needs a package that is not installed: pip install {error.name or name}"
        ) from error
    except (gymnasium.error.Error, ImportError, TypeError, AttributeError) as error:
        raise UserError(f"env.id={name} cannot be made: {' '.join(str(error).split())}") from error


def _rendering(entry_point: Any, resolution: int) -> dict[str, Any]:
    """Arguments with which an environment renders; MuJoCo's then render at the resolution of the run at once."""
    creator: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if creator is None or RENDER_MODE not in _render_modes(creator, [RENDER_MODE]):
        return {}
    names, takes_any = _arguments(creator)
    options: dict[str, Any] = {"render_mode": RENDER_MODE} if "render_mode" in names or takes_any else {}
    return options | ({"width": resolution, "height": resolution} if {"width", "height"} <= names else {})


def _arguments(creator: Any) -> tuple[set[str], bool]:
    """Names of a creator's arguments, those of MuJoCo's base class too where it gets the rest; and if it takes any."""
    parameters = inspect.signature(creator).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    bases = inspect.getmro(creator) if inspect.isclass(creator) and takes_any else ()
    mujoco = [base for base in bases if f"{base.__module__}.{base.__name__}" == MUJOCO]
    return {*parameters, *(name for base in mujoco for name in inspect.signature(base).parameters)}, takes_any


def _render_modes(env: Any, unknown: list[str]) -> list[str]:
    """The render modes of an environment or its class; `unknown` where it does not say."""
    metadata = getattr(env, "metadata", None)
    return list(metadata.get("render_modes") or ()) if isinstance(metadata, dict) else unknown


def require_rendering(env: gymnasium.Env[Any, Any], name: str) -> None:
    """Check that an environment renders, by rendering once.

    Raises:
        UserError: it does not, or a package is missing.
    """
    if RENDER_MODE not in _render_modes(env, []):
        raise UserError(f"env.id={name} cannot render images (render mode {RENDER_MODE}): {FROM_STATE}")
    try:
        env.reset(seed=0)
        env.render()
    except (gymnasium.error.Error, ImportError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"env.id={name} cannot render: {reason}; or {FROM_STATE}") from error
