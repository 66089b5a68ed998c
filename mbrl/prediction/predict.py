"""`mbrl predict`: imagine segments of real episodes, measure the errors, and write videos and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict, TensorDictBase
from tqdm import tqdm

from mbrl.compose import CONFIGS
from mbrl.device import fork_rng, pick_device
from mbrl.errors import UserError
from mbrl.prediction.held_out import GRIPPER, Segments, draw_segments, has_gripper
from mbrl.prediction.report import write_report
from mbrl.prediction.scores import FOLDS, MetricModels, RolloutPlan, score
from mbrl.prediction.summary import Row, summarise
from mbrl.run import Run
from mbrl.run_folder.config import read_config
from mbrl.run_folder.videos import write_comparison
from worldmodel.base import WorldModel
from worldmodel.metrics.control import success_threshold
from worldmodel.metrics.i3d import I3D, MIN_FRAMES
from worldmodel.metrics.images import load_lpips
from worldmodel.metrics.probe import PositionProbe, fit_probe

MAX_EPISODES = 400  # kept in memory, 12 KB for each frame of 64 px
PROBE_UPDATES = 400
MAX_PROBE_EPISODES = 200  # more frames than PROBE_UPDATES batches can use


@dataclass(frozen=True)
class LoadedModel:
    """A world model.

    Attributes:
        model: the world model, in eval mode.
        success_bonus: bonus at success that the model's rewards contain and those of recorded episodes do not.
    """

    model: WorldModel
    success_bonus: float = 0.0

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_model(path: Path, goal: bool | None = None, config_dir: Path | None = None) -> LoadedModel:
    """Load the world model of a run's newest checkpoint, or of weights in the published layout.

    Args:
        path: a run folder, a folder of weights, or an id of the Hugging Face hub.
        goal: whether the weights are goal-conditioned. None reads it from their files, which published ones do not say.
        config_dir: folder of the user's own configurations, whose classes the run may name.

    Raises:
        FileNotFoundError: The folder does not exist, or holds no weights.
        UserError: The run has no world model, or the files cannot be read.
    """
    if (path / "tokenizer").is_dir() or not path.exists():
        return _load_weights(path, goal)
    run = Run(path, config_dir)
    if "env" not in run.config:
        raise FileNotFoundError(f"{path} holds no weights yet: mbrl pretrain has not reached its first checkpoint")
    if run.world_model is None:
        raise UserError(f"{path} is a run of agent {run.config.agent.name!r}, which learns no world model")
    check_predicts_frames(run.world_model, path)
    return LoadedModel(run.world_model, float(run.config.env.get("success_bonus", 0.0)))


def _load_weights(path: Path, goal: bool | None) -> LoadedModel:
    from mbrl.targets import make

    settings = OmegaConf.create((CONFIGS / "weights.yaml").read_text(encoding="utf-8"))
    trained = path / "config.yaml"  # written by mbrl pretrain
    if trained.is_file():
        settings.segment_length = _segment_length(trained)
    model: WorldModel = make(settings, WorldModel, place="weights", source=path, goal=goal)
    return LoadedModel(model.to(pick_device("auto")))


def _segment_length(config: Path) -> int:
    """The segment length T of a model that `mbrl pretrain` trained. UserError if its configuration has none."""
    length = OmegaConf.select(read_config(config), "worldmodel.segment_length")
    if not isinstance(length, int):
        raise UserError(f"{config}: worldmodel.segment_length is {length!r}, not a number of frames")
    return length


def load_episodes(folder: Path, resolution: int) -> list[TensorDict]:
    """Load the episodes of a folder as records. From more than MAX_EPISODES, evenly spaced ones are loaded.

    Args:
        folder: folder of episodes, in any layout that EpisodeData reads.
        resolution: R, the side that frames are resized to.

    Raises:
        UserError: Frames are smaller than R.
    """
    from mbrl.data.segments import EpisodeData

    data = EpisodeData(folder, resolution=resolution)
    if data.smallest < resolution:
        side = f"{data.smallest}x{data.smallest}"
        raise UserError(f"{folder} has frames of {side}, and the model is made for {resolution}x{resolution}")
    chosen = range(0, len(data), -(-len(data) // MAX_EPISODES))
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
    """Imagine segments of real episodes, and write videos, horizon.png, table.json and table.csv.

    Args:
        model_path: run folder, folder of weights, or id of the Hugging Face hub.
        data: folder of episodes.
        output: folder to write into.
        horizon: H, steps to imagine; None for the longest horizon of the model that the episodes allow.
        segments: number of segments to measure.
        samples: K, rollouts of each segment.
        batch_size: rollouts in a batch.
        videos: number of segments to write as videos.
        seed: seed of segments, sampled codes and probes.
        lpips: files with the weights of VGG16 and of LPIPS; empty leaves LPIPS out.
        fvd: file with the weights of I3D; None leaves FVD out.
        probe: whether to measure the position of the gripper, whose probes take half a minute of CPU time to fit.
        goal: see `load_model`.
        config_dir: see `load_model`.

    Returns:
        The rows of the table, and the measures that are left out with the reason.

    Raises:
        FileNotFoundError: Model, data or weights do not exist.
        UserError: Model, data and arguments do not fit together.
    """
    check_counts({"samples": samples, "segments": segments, "batch-size": batch_size}, videos)
    loaded = load_model(model_path, goal, config_dir)
    episodes = load_episodes(data, loaded.model.resolution)
    check_data(loaded.model, episodes, data)
    horizon = check_horizon(loaded.model, horizon, fvd is not None, max(map(len, episodes)))
    drawn = draw_segments(episodes, context=loaded.model.context_length, horizon=horizon, count=segments, seed=seed)
    plan = RolloutPlan(samples, batch_size, seed, uses_actions=loaded.model.action_dim > 0)
    metrics = load_metrics(loaded, episodes, seed, lpips, fvd, probe)
    with tqdm(total=plan.rollouts(len(drawn)), desc="imagining", unit="rollout") as bar:
        scores = score(loaded.model, drawn, metrics, plan, bar.update)
    rows, left_out = summarise(scores, metrics)
    left_out |= {} if probe else {"gripper": "--no-probe was given"}
    counts = {"horizon": horizon, "segments": len(drawn), "samples": samples, "seed": seed, "episodes": len(episodes)}
    write_report(output, rows, left_out, {"model": str(model_path), "data": str(data), **counts})
    if videos:
        write_videos(output, loaded, drawn[:videos], seed)
    return rows, left_out


def load_metrics(
    loaded: LoadedModel,
    episodes: Sequence[TensorDictBase],
    seed: int,
    lpips: Sequence[Path],
    fvd: Path | None,
    probe: bool,
) -> MetricModels:
    """Load or fit what the scores need beside the frames; arguments as of `predict`."""
    return MetricModels(
        lpips=load_lpips(lpips).to(loaded.device) if lpips else None,
        i3d=I3D.from_file(fvd).to(loaded.device) if fvd else None,
        probes=fit_probes(episodes, loaded.device, seed) if probe and has_gripper(episodes) else (),
        threshold=reward_of_success(episodes, loaded.success_bonus),
        success_bonus=loaded.success_bonus,
    )


def check_counts(positive: Mapping[str, int], videos: int) -> None:
    """UserError if an option is smaller than 1 or, for the number of videos, smaller than 0."""
    least = {name: (value, 1) for name, value in positive.items()} | {"videos": (videos, 0)}
    for name, (value, low) in least.items():
        if value < low:
            raise UserError(f"--{name} must be {low} or more, not {value}")


def check_predicts_frames(model: WorldModel, path: Path) -> None:
    """UserError if the model predicts no frames, or needs more than recorded episodes have."""
    if "pixels" not in model.observations:
        raise UserError(f"{path}: this world model predicts states, and mbrl predict measures predicted frames")
    if model.context_keys:
        needed = ", ".join(model.context_keys)
        raise UserError(
            f"{path}: this world model starts from {needed} of the replay, which recorded episodes do not have; the "
            "run's metrics model_error/* measure it"
        )


def check_horizon(model: WorldModel, horizon: int | None, fvd: bool, frames: int) -> int:
    """The horizon, by default the longest of the model and of episodes of so many frames.

    Raises:
        UserError: The model or FVD does not allow it.
    """
    most = model.max_horizon
    horizon = max(1, min(most, frames - model.context_length)) if horizon is None else horizon
    if not 1 <= horizon <= most:
        raise UserError(f"--horizon must be 1 to {most}, the longest of this model, not {horizon}")
    length = model.context_length + horizon
    if fvd and length < MIN_FRAMES:
        raise UserError(f"--fvd needs videos of {MIN_FRAMES} frames or more, context included, not {length}")
    return horizon


def check_data(model: WorldModel, episodes: Sequence[TensorDictBase], data: Path) -> None:
    """UserError if the episodes lack what the model needs, or have actions of another width."""
    for episode in episodes:
        keys = episode.keys()
        if "pixels" not in keys:
            raise UserError(f"{data}: an episode has no pixels, which this model predicts")
        if model.action_dim and "action" not in keys:
            raise UserError(f"{data}: an episode has no actions, and this model needs them")
        if model.action_dim and episode["action"].shape[-1] != model.action_dim:
            width = episode["action"].shape[-1]
            raise UserError(f"{data} has actions of width {width}, and the model is made for {model.action_dim}")


def reward_of_success(episodes: Sequence[TensorDictBase], bonus: float) -> float | None:
    """The reward that best separates steps with success from others, the bonus included.

    Returns:
        The threshold, or None if the data do not contain both kinds of steps.
    """
    if not all({"reward", "success"} <= set(episode.keys()) for episode in episodes):
        return None
    success = torch.cat([episode["success"][:-1, 0] for episode in episodes])
    reward = torch.cat([episode["reward"][:-1, 0] for episode in episodes]) + bonus * success
    return success_threshold(reward, success) if success.any() and not success.all() else None


def fit_probes(episodes: Sequence[TensorDictBase], device: torch.device, seed: int) -> tuple[PositionProbe, ...]:
    """Fit a probe for each fold, to the episodes outside the fold. No probes if there are fewer episodes than folds."""
    if len(episodes) < FOLDS:
        return ()
    probes = []
    with tqdm(total=FOLDS * PROBE_UPDATES, desc="fitting gripper probes", unit="update") as bar:
        for fold in range(FOLDS):
            others = [episode for number, episode in enumerate(episodes) if number % FOLDS != fold]
            others = others[:: -(-len(others) // MAX_PROBE_EPISODES)]
            frames = torch.cat([episode["pixels"] for episode in others]).to(device)
            positions = torch.cat([episode["state"][:, GRIPPER] for episode in others]).to(device)
            probes.append(fit_probe(frames, positions, updates=PROBE_UPDATES, seed=seed, on_update=bar.update))
    return tuple(probes)


@torch.no_grad()
def write_videos(folder: Path, loaded: LoadedModel, segments: Segments, seed: int) -> None:
    """Write segment-00.mp4, ...: real | imagined | difference, with C real frames first, and a PNG beside each."""
    steps = segments.leading("pixels").shape[:2]
    actions = segments.leading("action") if loaded.model.action_dim else torch.zeros(*steps, 0)
    with fork_rng():
        torch.manual_seed(seed)
        rollout = loaded.model.predict(segments.before().to(loaded.device), actions.to(loaded.device))
    imagined = torch.cat([segments.before()["pixels"], rollout["pixels"].cpu()], 1)
    length = imagined.shape[1]
    is_imagined = torch.arange(length) >= segments.context
    for number in range(len(segments)):
        real = segments.records["pixels"][number]
        path, shown = folder / f"segment-{number:02d}.mp4", range(segments.context, length)
        write_comparison(path, real, imagined[number], is_imagined, shown)
