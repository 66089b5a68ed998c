"""From a run folder or weights to everything that `mbrl play` needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torchrl.envs import EnvBase

from mbrl.data.episodes import SUFFIX, episode_metadata, read_metadata
from mbrl.envs.gym import has_snapshots
from mbrl.envs.metaworld import make_env as make_metaworld
from mbrl.envs.simulator import MAX_EPISODE_STEPS, task_names
from mbrl.errors import UserError
from mbrl.play.drivers import Driver, ScriptDriver, policy_drivers
from mbrl.play.episodes import FolderSource, Library, ReplaySource, Source
from mbrl.play.recording import Recordings
from mbrl.play.session import Session
from mbrl.run import Run, load
from worldmodel.base import WorldModel

PREDICTS_NO_PIXELS = "mbrl play shows a world model that predicts pixels"


@dataclass(frozen=True)
class Parts:
    """World model, environment and policies of a session.

    Attributes:
        title: the run or the weights.
        task: the task.
        session: the worlds.
        drivers: what can steer instead of a person, by name.
        library: episodes to start from.
        recordings: where the session is saved.
        notes: what a person should know, a sentence each.
    """

    title: str
    task: str
    session: Session
    drivers: dict[str, Driver]
    library: Library
    recordings: Recordings
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Free the simulator."""
        self.session.close()


def load_parts(
    path: Path,
    *,
    task: str | None = None,
    data: Path | None = None,
    config_dir: Path | None = None,
    checkpoint: int | None = None,
) -> Parts:
    """Load a run, or weights in the published layout.

    Args:
        path: a run folder, a folder of weights, or an id of the Hugging Face hub.
        task: task of the environment; None for that of the run.
        data: folder of episodes to start from.
        config_dir: folder of the user's own configurations, whose classes the run may name.
        checkpoint: env steps of the checkpoint of a run; None for the newest.

    Raises:
        FileNotFoundError: there is nothing at the path.
        UserError: there is no world model that predicts pixels, or it does not fit the task.
        OSError: there is no OpenGL.
    """
    if (path / "tokenizer").is_dir() or not path.exists():
        if checkpoint is not None:
            raise UserError(f"--checkpoint chooses one of a run, and {path} holds weights: leave it out")
        return _from_weights(path, task, data)
    return _from_run(load(path, config_dir, checkpoint), task, data)


def _from_run(run: Run, task: str | None, data: Path | None) -> Parts:
    if "env" not in run.config:
        raise FileNotFoundError(
            f"{run.folder} holds no weights yet: mbrl pretrain has not reached its first checkpoint"
        )
    settings = run.config.env
    model = run.world_model
    if model is None:
        raise UserError(f"{run.folder} is a run of agent {run.config.agent.name!r}, which learns no world model")
    _require_pixels(model, run.folder)
    repeat, trained = int(settings.get("action_repeat", 1)), str(settings.get("task", ""))
    options: dict[str, Any] = {"episode_length": MAX_EPISODE_STEPS // repeat * repeat}
    bonus = float(settings.get("success_bonus", 0.0))
    if "success_bonus" in settings:
        options["success_bonus"] = bonus  # The world model has learned rewards that contain it.
    notes = []
    if task is not None and task.removesuffix("-v3") != trained:
        if "tasks" in settings:
            raise UserError(f"--task {task}: this run has several tasks, and each reset starts the next one")
        options["task"] = task
        notes.append(f"The world model never saw {task}: it learned {trained}.")
    make_env = partial(run.make_env, **options)
    env = make_env(pixels=True)
    if not has_snapshots(env.unwrapped):
        raise UserError(
            f"mbrl play goes back to earlier steps, and {trained} has no exact snapshots to go back to: it plays "
            "runs of env=metaworld, env=mt10 and env=toy"
        )
    stack = int(settings.get("frame_stack", 1))
    drivers = policy_drivers(run.policy, stack, model.observations)
    sources = _sources(run, model.resolution, data)
    return _assemble(env, make_env, model, task or trained, run.folder, run.folder, bonus, drivers, sources, notes)


def _from_weights(path: Path, task: str | None, data: Path | None) -> Parts:
    from mbrl.prediction.predict import load_model

    if task is None:
        raise UserError(f"{path} holds weights, which name no task: add --task TASK, such as --task window-close")
    model = load_model(path).model
    _require_pixels(model, path)
    view = _recorded_view(data)
    repeat = int(view.pop("action_repeat", 2))
    options = {"resolution": model.resolution, "action_repeat": repeat, **view}
    make_env = partial(make_metaworld, task, episode_length=MAX_EPISODE_STEPS // repeat * repeat, **options)
    sources: dict[str, Source] = {} if data is None else {data.name: FolderSource(data, model.resolution)}
    output = path if path.exists() else Path("runs") / path.name
    return _assemble(make_env(), make_env, model, task, path, output, 0.0, {}, sources, [])


def _assemble(
    env: EnvBase,
    make_env: Callable[..., EnvBase],
    model: WorldModel,
    task: str,
    title: Path,
    output: Path,
    bonus: float,
    drivers: dict[str, Driver],
    sources: dict[str, Source],
    notes: list[str],
) -> Parts:
    model.enable_all_uncertainties()
    session, inner = Session(env, model, success_bonus=bonus), env.unwrapped
    task = task.removesuffix("-v3")
    tasks = [name.removesuffix("-v3") for name in getattr(inner, "tasks", [task])]
    if set(tasks) <= set(task_names()):
        drivers["scripted policy"] = ScriptDriver(tasks, env.observation_spec, env.action_spec)
    if model.action_dim == 0:
        notes.append("This world model reads no actions: it imagines what may happen, and does not follow the keys.")
    about = episode_metadata(task, getattr(inner, "action_repeat", 1), getattr(inner, "view", None))
    recordings = Recordings(output / "play", about, bonus)
    return Parts(str(title), task, session, drivers, Library(sources, make_env), recordings, notes)


def _sources(run: Run, resolution: int, data: Path | None) -> dict[str, Source]:
    """The replay of a run, if it keeps one, and a folder."""
    sources: dict[str, Source] = {}
    if (run.folder / "replay").is_dir():
        sources["replay"] = ReplaySource(run.replay.online, run.config.seed, run.config.collect.workers)
    if data is not None:
        sources[data.name] = FolderSource(data, resolution, (0, run.config.eval.seed, run.config.seed))
    return sources


def _recorded_view(data: Path | None) -> dict[str, Any]:
    """Camera and action repeat that a folder's episodes were recorded with, where they say so."""
    files = [] if data is None else sorted(data.rglob(f"[!.]*{SUFFIX}"))
    about = read_metadata(files[0]) if files else {}
    settings = {"action_repeat": about["action_repeat"]} if "action_repeat" in about else {}
    camera, _, mirrored = str(about.get("view") or "").partition(" ")
    return {**settings, "camera": camera, "mirrored": mirrored == "mirrored"} if camera else settings


def _require_pixels(model: WorldModel, path: Path) -> None:
    if "pixels" not in model.observations:
        raise UserError(f"{path}: this world model predicts states, and {PREDICTS_NO_PIXELS}")
