"""`mbrl predict`: videos of what a model imagines beside what happened, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict, TensorDictBase
from tqdm import tqdm

from mbrl.compose import CONFIG_MODULE
from mbrl.errors import UserError
from mbrl.prediction.held_out import HAND, Segments, draw_segments, shows_the_hand
from mbrl.prediction.report import write_report
from mbrl.prediction.scores import FOLDS, Imagining, Judges, score
from mbrl.prediction.summary import Row, summarise
from mbrl.run import Run
from mbrl.run_folder.config import read_config
from mbrl.run_folder.videos import write_comparison
from worldmodel.base import WorldModel
from worldmodel.metrics.control import success_threshold
from worldmodel.metrics.i3d import I3D, MIN_FRAMES
from worldmodel.metrics.images import load_lpips
from worldmodel.metrics.probe import PositionProbe, fit_probe

EPISODES = 400  # held in memory, 12 KB a frame at 64 px
PROBE_UPDATES = 400
PROBE_EPISODES = 200  # more than that many updates can use


@dataclass(frozen=True)
class LoadedModel:
    """A world model in eval mode, and what its rewards hold beside the data's where the task is solved."""

    model: WorldModel
    success_bonus: float = 0.0

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_model(path: Path, goal: bool | None = None, config_dir: Path | None = None) -> LoadedModel:
    """The world model of a run's newest checkpoint, or of weights in the published layout: a folder or a hub id.

    Args:
        config_dir: a user's own configurations, whose classes the run may name beside this project's.
        goal: whether weights are conditioned on a goal; None: as they say (the published ones do not).

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it to load.
        ValueError: the run has no world model, or what was found cannot be read.
    """
    if (path / "tokenizer").is_dir() or not path.exists():
        return _load_weights(path, goal)
    run = Run(path, config_dir)
    if "env" not in run.config:
        raise FileNotFoundError(f"{path} holds no weights yet: mbrl pretrain has not reached its first checkpoint")
    if run.world_model is None:
        raise UserError(f"{path} is a run of agent {run.config.agent.name!r}, which learns no world model")
    return LoadedModel(run.world_model, float(run.config.env.get("success_bonus", 0.0)))


def _load_weights(path: Path, goal: bool | None) -> LoadedModel:
    from mbrl.build import pick_device
    from mbrl.targets import make

    settings = OmegaConf.create(files(CONFIG_MODULE).joinpath("weights.yaml").read_text())
    trained = path / "config.yaml"  # of mbrl pretrain
    if trained.is_file():
        settings.segment_length = _segment_length(trained)
    model: WorldModel = make(settings, WorldModel, place="weights", source=path, goal=goal)
    return LoadedModel(model.to(pick_device("auto")))


def _segment_length(config: Path) -> int:
    """T of the model that `mbrl pretrain` trained; ValueError where its configuration does not say."""
    length = OmegaConf.select(read_config(config), "worldmodel.segment_length")
    if not isinstance(length, int):
        raise UserError(f"{config}: worldmodel.segment_length is {length!r}, not a number of frames")
    return length


def load_episodes(folder: Path, resolution: int) -> list[TensorDict]:
    """Episodes of a folder (any layout that EpisodeData reads) as records, frames resized to R; evenly spaced ones
    where there are more than EPISODES.

    Raises:
        ValueError: frames are smaller than R.
    """
    from mbrl.data.segments import EpisodeData

    data = EpisodeData(folder, resolution=resolution)
    if data.smallest < resolution:
        side = f"{data.smallest}x{data.smallest}"
        raise UserError(f"{folder} has frames of {side}, and the model is made for {resolution}x{resolution}")
    chosen = range(0, len(data), -(-len(data) // EPISODES))
    wholes = (data.segment(number, 0, data.lengths[number]) for number in chosen)
    return [whole.exclude("next").update(whole.get("next", TensorDict())) for whole in wholes]


def predict(
    model_path: Path,
    data: Path,
    output: Path,
    *,
    horizon: int | None = None,
    segments: int = 64,
    samples: int = 1,
    batch_size: int = 16,
    videos: int = 4,
    seed: int = 0,
    lpips: Sequence[Path] = (),
    fvd: Path | None = None,
    probe: bool = True,
    goal: bool | None = None,
    config_dir: Path | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Imagine real segments, measure, and write videos, horizon.png, table.json and table.csv into `output`.

    Args:
        horizon: steps to imagine; None for as far as the model goes. segments: how many are measured.
        samples: K rollouts of each. batch_size: rollouts side by side. videos: how many are written.
        goal, config_dir: see load_model. lpips: files of VGG16's and LPIPS's weights. fvd: file of I3D's weights.

    Returns:
        The table, and what was left out with the reason.

    Raises:
        FileNotFoundError, ValueError: one line saying what does not fit.
    """
    least = {"samples": (samples, 1), "segments": (segments, 1), "batch-size": (batch_size, 1), "videos": (videos, 0)}
    for name, (value, low) in least.items():
        if value < low:
            raise UserError(f"--{name} must be {low} or more, not {value}")
    loaded = load_model(model_path, goal, config_dir)
    episodes = load_episodes(data, loaded.model.resolution)
    horizon = check_horizon(loaded.model, horizon, fvd is not None)
    check_data(loaded.model, episodes, data)
    options = {"context": loaded.model.context_length, "horizon": horizon, "count": segments, "seed": seed}
    drawn = draw_segments(episodes, **options)
    plan = Imagining(samples, batch_size, seed, uses_actions=loaded.model.action_dim > 0)
    judges = Judges(
        lpips=load_lpips(lpips).to(loaded.device) if lpips else None,
        i3d=I3D.from_file(fvd).to(loaded.device) if fvd else None,
        probes=fit_probes(episodes, loaded.device, seed) if probe and shows_the_hand(episodes) else (),
        threshold=reward_of_success(episodes, loaded.success_bonus),
        success_bonus=loaded.success_bonus,
    )
    with tqdm(total=plan.rollouts(len(drawn)), desc="imagining", unit="rollout") as bar:
        scores = score(loaded.model, drawn, judges, plan, bar.update)
    rows, left_out = summarise(scores, judges)
    if not probe:
        left_out["gripper"] = "--no-probe was given"
    settings = {"model": str(model_path), "data": str(data), "horizon": horizon, "segments": len(drawn)}
    settings |= {"samples": samples, "seed": seed, "episodes": len(episodes)}
    write_report(output, rows, left_out, settings)
    if videos:
        write_videos(output, loaded, drawn[:videos], seed)
    return rows, left_out


def check_horizon(model: WorldModel, horizon: int | None, fvd: bool) -> int:
    """The horizon, as far as the model goes where none was asked for; ValueError where it does not fit."""
    most = model.max_horizon
    horizon = most if horizon is None else horizon
    if not 1 <= horizon <= most:
        raise UserError(f"--horizon must be 1 to {most}, as far as this model goes, not {horizon}")
    frames = model.context_length + horizon
    if fvd and frames < MIN_FRAMES:
        raise UserError(f"--fvd needs videos of {MIN_FRAMES} frames or more, context included, not {frames}")
    return horizon


def check_data(model: WorldModel, episodes: Sequence[TensorDictBase], data: Path) -> None:
    """ValueError where these are not the episodes that the model is made for."""
    for episode in episodes:
        keys = episode.keys()
        if "pixels" not in keys:
            raise UserError(f"{data}: an episode has no pixels, and this model predicts nothing else")
        if model.action_dim and "action" not in keys:
            raise UserError(f"{data}: an episode has no actions, and this model needs them")
        if model.action_dim and episode["action"].shape[-1] != model.action_dim:
            width = episode["action"].shape[-1]
            raise UserError(f"{data} has actions of width {width}, and the model is made for {model.action_dim}")


def reward_of_success(episodes: Sequence[TensorDictBase], bonus: float) -> float | None:
    """The reward that best parts steps with success from others; None where the data do not hold both."""
    if not all({"reward", "success"} <= set(episode.keys()) for episode in episodes):
        return None
    success = torch.cat([episode["success"][:-1, 0] for episode in episodes])
    reward = torch.cat([episode["reward"][:-1, 0] for episode in episodes]) + bonus * success
    return success_threshold(reward, success) if success.any() and not success.all() else None


def fit_probes(episodes: Sequence[TensorDictBase], device: torch.device, seed: int) -> tuple[PositionProbe, ...]:
    """For each fold a probe fitted to the other episodes; none where there are too few."""
    if len(episodes) < FOLDS:
        return ()
    probes = []
    with tqdm(total=FOLDS * PROBE_UPDATES, desc="fitting gripper probes", unit="update") as bar:
        for fold in range(FOLDS):
            others = [episode for number, episode in enumerate(episodes) if number % FOLDS != fold]
            others = others[:: -(-len(others) // PROBE_EPISODES)]
            frames = torch.cat([episode["pixels"] for episode in others]).to(device)
            hand = torch.cat([episode["state"][:, HAND] for episode in others]).to(device)
            probes.append(fit_probe(frames, hand, updates=PROBE_UPDATES, seed=seed, on_update=bar.update))
    return tuple(probes)


@torch.no_grad()
def write_videos(folder: Path, loaded: LoadedModel, segments: Segments, seed: int) -> None:
    """Write segment-00.mp4, .. with a still beside each: real | imagined | difference, the first C frames real."""
    steps = segments.leading("pixels").shape[:2]
    actions = segments.leading("action") if loaded.model.action_dim else torch.zeros(*steps, 0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rollout = loaded.model.predict(segments.before().to(loaded.device), actions.to(loaded.device))
    imagined = torch.cat([segments.before()["pixels"], rollout["pixels"].cpu()], 1)
    length = imagined.shape[1]
    is_imagined = torch.arange(length) >= segments.context
    for number in range(len(segments)):
        real = segments.records["pixels"][number]
        path, shown = folder / f"segment-{number:02d}.mp4", range(segments.context, length)
        write_comparison(path, real, imagined[number], is_imagined, shown)
