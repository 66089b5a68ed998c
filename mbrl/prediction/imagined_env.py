"""`mbrl.imagined_env`: the world model of a run as a Gymnasium environment."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from mbrl.collecting.imagining import imagination_env, starts_from
from mbrl.envs.continued import Continued
from mbrl.envs.imagined_gym import ImaginedGymEnv
from mbrl.errors import UserError
from mbrl.prediction.compatibility import (
    env_options,
    env_settings,
    require_fit,
    require_same_env,
    started_from,
    trained_in,
)
from mbrl.prediction.models import load_model
from mbrl.prediction.replays import is_run
from mbrl.run import HORIZON, Run
from worldmodel.base import WorldModel


class _Model(NamedTuple):
    """A world model, and the run folder or weights that it is from; None if it was given by itself."""

    model: WorldModel
    path: Path | None


def imagined_env(
    run_or_model: Run | WorldModel | str | Path, starts: Run | str | Path | None = None, *, horizon: int | None = None
) -> ImaginedGymEnv:
    """The imagined environment of a world model for libraries that step Gymnasium environments.

    Each episode starts from a real state of a replay, and is truncated at the horizon. `reset(seed=...)` decides an
    episode; `render()` gives its newest frame. Rewards are in the units of the model: with the success bonus of the
    run that it was trained in.

    Args:
        run_or_model: a run, its folder, weights (a folder or an id of the Hugging Face hub), or a world model.
        starts: the run, or its folder, whose replay the real states are drawn from and whose environment gives the
            spaces. None: `run_or_model`, which is then a run.
        horizon: steps of an episode, 1 or more; more than the model was trained to imagine are imagined from its own
            predictions. None: as in `Run.imagine`, the smaller of 15 and what the model was trained to imagine.

    Returns:
        An environment that passes `gymnasium.utils.env_checker.check_env`: `frames` as a Box uint8 [R, R, 3K] with the
        K newest frames, or `state` as a Box float32 [S]; a Dict of them for a model of several observations.

    Raises:
        FileNotFoundError: there is no run or model in a folder.
        UserError: there is no world model or replay, or they do not fit together.
    """
    model, path = _model(run_or_model)
    run = _run(run_or_model if starts is None else starts)
    length = min(HORIZON, model.max_horizon) if horizon is None else horizon
    if length < 1:
        raise UserError(f"horizon is {horizon}: it must be 1 or more")
    with closing(run.make_env(**env_options(model))) as env:
        settings = None if path is None else trained_in(path)
        if settings is not None:
            pixels = "pixels" in model.observations
            require_same_env(env_settings(run.config), run.folder, settings, path, pixels=pixels)
        require_fit(model, env, run.folder)
        held = run.replay.online.records.keys()
        for key in started_from(model):
            if key not in held:
                raise UserError(f"the replay of {run.folder} holds no {key}, from which this world model starts")
        return ImaginedGymEnv(imagination_env(Continued(model, length), env, starts_from(run.replay, model), 1, length))


def _model(given: Run | WorldModel | str | Path) -> _Model:
    if isinstance(given, WorldModel):
        return _Model(given.eval(), None)
    if not isinstance(given, Run):
        return _Model(load_model(Path(given)).model, Path(given))
    if given.world_model is None:
        raise UserError(f"{given.folder} is a run of agent {given.config.agent.name!r}, which learns no world model")
    return _Model(given.world_model, given.folder)


def _run(given: Run | WorldModel | str | Path) -> Run:
    if isinstance(given, Run):
        return given
    if isinstance(given, WorldModel) or not is_run(Path(given)):
        what = "a world model by itself" if isinstance(given, WorldModel) else given
        raise UserError(f"{what} has no replay to start from: give a run as `starts`")
    return Run(Path(given))
