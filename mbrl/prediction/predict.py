"""`mbrl predict`: imagine segments of real episodes, measure the errors, and write videos and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from tensordict import TensorDictBase
from tqdm import tqdm

from mbrl.device import fork_rng
from mbrl.errors import UserError
from mbrl.prediction.fresh import train_model
from mbrl.prediction.held_out import GRIPPER, Segments, draw_segments, has_gripper
from mbrl.prediction.models import LoadedModel, check_predicts_frames, load_model
from mbrl.prediction.ranking import SAMPLES, rank_plans, reality_of
from mbrl.prediction.recorded import held_out_share, load_episodes
from mbrl.prediction.replays import (
    ALL,
    STARTS,
    Chosen,
    HeldOut,
    earlier_checkpoint,
    episodes_of,
    held_out_numbers,
    is_run,
    seen_episodes,
)
from mbrl.prediction.report import write_report
from mbrl.prediction.scores import FOLDS, MetricModels, RolloutPlan, score
from mbrl.prediction.summary import Row, ranking_rows, summarise
from mbrl.run import Run
from mbrl.run_folder.videos import write_comparison
from worldmodel.base import WorldModel
from worldmodel.metrics.control import success_threshold
from worldmodel.metrics.i3d import I3D, MIN_FRAMES
from worldmodel.metrics.images import load_lpips
from worldmodel.metrics.probe import PositionProbe, fit_probe

PROBE_UPDATES = 400
UNLIMITED = 10  # steps to imagine in a model that can imagine any number of steps, such as the simulator
MAX_PROBE_EPISODES = 200  # more frames than PROBE_UPDATES batches can use


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
    chosen: Chosen = ALL,
) -> tuple[list[Row], dict[str, str]]:
    """Imagine segments of real episodes, and write videos, horizon.png, table.json and table.csv.

    Args:
        model_path: run folder, folder of weights, or id of the Hugging Face hub.
        data: folder of episodes, or of a run, whose replay is read.
        output: folder to write into.
        horizon: H, steps to imagine; None for the longest horizon of the model that the episodes allow.
        segments: number of segments to measure.
        samples: K, rollouts of each segment.
        batch_size: rollouts in a batch.
        videos: number of segments to write as videos.
        seed: seed of segments, plans, sampled codes and probes.
        lpips: files with the weights of VGG16 and of LPIPS; empty leaves LPIPS out.
        fvd: file with the weights of I3D; None leaves FVD out.
        probe: whether to measure the position of the gripper, whose probes take half a minute of CPU time to fit.
        goal, config_dir: see `load_model`.
        chosen: which episodes of a run's replay.

    Returns:
        The rows of the table, and the measures that are left out with the reason.

    Raises:
        FileNotFoundError: Model, data or weights do not exist.
        UserError: Model, data and arguments do not fit together.
    """
    check_counts({"samples": samples, "segments": segments, "batch-size": batch_size}, videos)
    loaded, held_out = load(model_path, data, chosen, goal, config_dir)
    model, episodes = loaded.model, held_out.episodes
    check_data(model, episodes, data)
    horizon = check_horizon(model, horizon, fvd is not None, max(map(len, episodes)))
    drawn = draw_segments(episodes, context=model.context_length, horizon=horizon, count=segments, seed=seed)
    metrics = load_metrics(loaded, episodes, seed, lpips, fvd, probe)
    rows, left_out = measure(model, drawn, metrics, RolloutPlan(samples, batch_size, seed, model.action_dim > 0))
    ranked, unranked = rank(loaded, held_out, chosen.starts or STARTS, seed, batch_size)
    rows, left_out = rows + ranked, left_out | unranked | ({} if probe else {"gripper": "--no-probe was given"})
    counts = {"horizon": horizon, "segments": len(drawn), "samples": samples, "seed": seed, "episodes": len(episodes)}
    settings = {"model": str(model_path), "data": str(data), **counts, "first_episode": held_out.first}
    write_report(output, rows, left_out, settings)
    if videos:
        write_videos(output, loaded, drawn[:videos], seed)
    return rows, left_out


def load(
    model_path: Path, data: Path, chosen: Chosen, goal: bool | None = None, config_dir: Path | None = None
) -> tuple[LoadedModel, HeldOut]:
    """Load the model, which is trained first where that is asked for, and the episodes to measure it on.

    Arguments and errors as of `predict`.
    """
    if not is_run(data):
        chosen.require_folder(data)
        loaded = load_model(model_path, goal, config_dir)
        check_predicts_frames(loaded.model, model_path)
        episodes = load_episodes(data, loaded.model.resolution, held_out_share(model_path, data))
        return loaded, HeldOut(episodes).for_model(loaded.model)
    run, checkpoint = Run(data, config_dir), None
    if chosen.train is not None:
        after = chosen.after or 0
        numbers = held_out_numbers(run, after, chosen)
        train_model(model_path, run, after, chosen.train, config_dir)
        if seen_episodes(model_path, run) != after:
            raise UserError(f"{model_path} holds a model that was trained on other episodes: give another folder")
    elif model_path.resolve() == data.resolve():
        checkpoint = earlier_checkpoint(data)
        earlier = Run(data, config_dir, checkpoint).replay.online
        numbers = held_out_numbers(run, len(earlier.episodes), chosen)
    else:
        numbers = held_out_numbers(run, seen_episodes(model_path, run), chosen)
    loaded = load_model(model_path, goal, config_dir, checkpoint)
    check_predicts_frames(loaded.model, model_path)
    return loaded, HeldOut(episodes_of(run, numbers), run, numbers[0]).for_model(loaded.model)


def measure(
    model: WorldModel, drawn: Segments, metrics: MetricModels, plan: RolloutPlan
) -> tuple[list[Row], dict[str, str]]:
    """Imagine the segments, and summarise the scores."""
    with tqdm(total=plan.rollouts(len(drawn)), desc="imagining", unit="rollout") as bar:
        return summarise(score(model, drawn, metrics, plan, bar.update), metrics)


def rank(
    loaded: LoadedModel, held_out: HeldOut, starts: int, seed: int, batch_size: int
) -> tuple[list[Row], dict[str, str]]:
    """Rank plans from the states of a run's replay; left out where that cannot be done."""
    model, run, measure = loaded.model, held_out.run, "ranking of plans"
    if run is None:
        return [], {measure: "it needs a run as DATA, whose replay has snapshots of the simulator"}
    if not model.predicts_reward or model.goal_conditioned:
        return [], {measure: "the model predicts no rewards, or needs a goal"}
    reality = reality_of(run, loaded.success_bonus)
    if reality is None:
        return [], {measure: f"the replay of {run.folder} has no snapshots: record a run with env.snapshots=true"}
    with closing(reality.env):
        context = max(model.context_length, int(run.config.env.get("frame_stack", 1)))
        drawn = draw_segments(held_out.episodes, context=context, horizon=1, count=starts, seed=seed)
        with tqdm(total=len(drawn), desc="ranking plans", unit="start") as bar:
            ranking = rank_plans(model, reality, drawn, seed, max(1, batch_size // SAMPLES), bar.update)
    return ranking_rows(ranking)


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


def check_horizon(model: WorldModel, horizon: int | None, fvd: bool, frames: int) -> int:
    """The horizon, by default the longest of the model (UNLIMITED if it has none) and of episodes of so many frames.

    Raises:
        UserError: The model or FVD does not allow it.
    """
    most = model.max_horizon
    longest = most if model.trained_horizon is not None else min(most, UNLIMITED)
    horizon = max(1, min(longest, frames - model.context_length)) if horizon is None else horizon
    if not 1 <= horizon <= most:
        raise UserError(f"--horizon must be 1 to {most}, the longest of this model, not {horizon}")
    length = model.context_length + horizon
    if fvd and length < MIN_FRAMES:
        raise UserError(f"--fvd needs videos of {MIN_FRAMES} frames or more, context included, not {length}")
    return horizon


def check_data(model: WorldModel, episodes: Sequence[TensorDictBase], data: Path) -> None:
    """UserError if the episodes lack what the model needs, or have frames or actions of another size."""
    for episode in episodes:
        keys = episode.keys()
        if "pixels" not in keys:
            raise UserError(f"{data}: an episode has no pixels, which this model predicts")
        side = episode["pixels"].shape[-1]
        if side != model.resolution:
            raise UserError(
                f"{data} has frames of {side}x{side}, and the model is made for {model.resolution}x{model.resolution}"
            )
        missing = [key for key in model.context_keys if key not in keys]
        if missing:
            raise UserError(
                f"{data}: this world model starts from the {missing[0]} of a step, which its episodes do not have: "
                "give a run with env.snapshots=true as DATA"
            )
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
