"""`mbrl evaluate RUN ... --in-imagination MODEL`: policies ranked in a world model, beside the real environment.

N episodes, C context steps, K frame stack, H horizon.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tqdm import tqdm

from mbrl.build import agent_steps_per_episode, env_factory
from mbrl.collecting.evaluation import SIDE_BY_SIDE, Evaluator
from mbrl.collecting.imagining import imagination_env, play_imagined
from mbrl.data.episodes import INITIAL
from mbrl.envs.continued import Continued
from mbrl.errors import UserError
from mbrl.prediction.compatibility import (
    env_options,
    env_settings,
    require_fit,
    require_readable,
    require_same_env,
    trained_in,
)
from mbrl.prediction.models import LoadedModel, load_model
from mbrl.prediction.policy_scores import Correlation, Episodes, Score, SuccessRule, correlate, score, success_rule
from mbrl.processes.usage import usable_cores
from mbrl.run import Run, load
from mbrl.run_folder.paths import CHECKPOINTS, checkpoint_folders

ONE = (
    "one checkpoint cannot be ranked: give several RUNs, or a RUN that holds several checkpoints (without "
    "--checkpoint), or play it alone (without --in-imagination)"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    Attributes:
        run: the run at this checkpoint.
        name: of the run, without what all runs have in common.
        env_steps: env steps so far.
    """

    run: Run
    name: str
    env_steps: int

    def __str__(self) -> str:
        return f"{self.name} at {self.env_steps}"


@dataclass(frozen=True)
class Protocol:
    """The episodes that every checkpoint plays.

    Attributes:
        episodes: number of them, of each task if there are several.
        seed: seed of the list of goals.
        horizon: H, steps that are imagined.
    """

    episodes: int
    seed: int
    horizon: int


@dataclass(frozen=True)
class PolicyRanking:
    """Scores of checkpoints, as imagined and real.

    Attributes:
        checkpoints: they, in the order in which they were given.
        scores: of each.
        returns, success: rank correlations of imagined with real return and success.
        rule: how imagined success was inferred from rewards.
        protocol: what was played.
        episodes: the episodes of each, for further figures.
    """

    checkpoints: list[Checkpoint]
    scores: list[Score]
    returns: Correlation
    success: Correlation
    rule: SuccessRule
    protocol: Protocol
    episodes: list[Episodes]


def rank_policies(
    runs: Sequence[Path],
    model_path: Path,
    *,
    episodes: int | None = None,
    seed: int | None = None,
    horizon: int | None = None,
    checkpoint: int | None = None,
    config_dir: Path | None = None,
) -> PolicyRanking:
    """Play the policies of checkpoints in the real environment, and from the same starts in a world model.

    Every checkpoint plays the same goals. The first C frames of an episode are real, and so are the actions between
    them; from there the policy acts on what the model imagines, and the real episode goes on too. Both returns count
    the H steps after the first C frames.

    Args:
        runs: run folders, all of whose checkpoints are played.
        model_path: a run folder, a folder of weights, or an id of the Hugging Face hub.
        episodes: number of goals; None for that of the first run's evaluations.
        seed: seed of the goals; None for that of the first run's evaluations.
        horizon: H; None for the rest of an episode.
        checkpoint: env steps of the one checkpoint of each run to play; None for all.
        config_dir: folder of the user's own configurations, whose classes the runs may name.

    Raises:
        FileNotFoundError: a folder does not exist, or holds no run or no weights.
        UserError: there are fewer than two checkpoints, or runs and model do not fit together.
    """
    found = checkpoints_of(runs, checkpoint, config_dir)
    loaded = load_model(model_path, config_dir=config_dir)
    settings = found[0].run.config.eval
    protocol = Protocol(
        settings.episodes if episodes is None else episodes,
        settings.seed if seed is None else seed,
        check_horizon(found[0].run, loaded, horizon),
    )
    check_checkpoints(found, loaded, model_path)
    model = Continued(loaded.model, protocol.horizon)
    steps = agent_steps_per_episode(found[0].run.config) + protocol.horizon
    episodes = protocol.episodes * max(1, len(found[0].run.config.env.get("tasks") or []))
    with tqdm(total=len(found) * episodes * steps, unit="step", unit_scale=True) as bar:
        played = []
        for each in found:
            bar.set_description(str(each))
            played.append(play(each, model, loaded.success_bonus, protocol, bar.update))
    rule = success_rule(torch.cat([each.real_peak for each in played]), torch.cat([each.success for each in played]))
    scores = [score(each, rule) for each in played]
    returns = correlate([each.real_return for each in scores], [each.imagined_return for each in scores])
    success = correlate([each.real_success for each in scores], [each.imagined_success for each in scores])
    return PolicyRanking(found, scores, returns, success, rule, protocol, played)


def checkpoints_of(runs: Sequence[Path], checkpoint: int | None, config_dir: Path | None) -> list[Checkpoint]:
    """The checkpoints of runs, oldest first.

    Raises:
        UserError: there are fewer than two, or a run is given twice.
    """
    names, found = _names(runs), []
    for folder, name in zip(runs, names, strict=True):
        load(folder, config_dir)  # says what is wrong with a folder that is none of a run
        held = list(checkpoint_folders(folder / CHECKPOINTS))
        if not held:
            raise FileNotFoundError(f"{folder} holds no checkpoint: train it first (mbrl train run_dir={folder})")
        if checkpoint is not None and checkpoint not in held:
            there = ", ".join(map(str, held))
            raise UserError(f"{folder} holds no checkpoint of {checkpoint} env steps; there are: {there}")
        chosen = held if checkpoint is None else [checkpoint]
        found += [Checkpoint(load(folder, config_dir, env_steps), name, env_steps) for env_steps in chosen]
    if len(found) < 2:
        raise UserError(ONE)
    for each in found:
        _ = each.run.policy  # says what is wrong with the configuration or the weights of a run
    return found


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders of runs from the innermost folder that holds all of them.

    Raises:
        UserError: a run is given twice.
    """
    real = [folder.resolve() for folder in runs]
    for number, folder in enumerate(real):
        if folder in real[:number]:
            raise UserError(f"{runs[number]} is given twice")
    folders = [folder.absolute() for folder in runs]
    common = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0].parent
    return [str(folder.relative_to(common)) for folder in folders]


def check_horizon(run: Run, loaded: LoadedModel, horizon: int | None) -> int:
    """H, the steps of an episode after the first C frames, or those that are asked for.

    Raises:
        UserError: an episode is shorter, or the model cannot imagine so many steps.
    """
    context, length = loaded.model.context_length, agent_steps_per_episode(run.config)
    most = length - context + 1
    if most < 1:
        raise UserError(f"an episode has {length} steps, and this world model starts from {context} frames")
    if horizon is not None and horizon > most:
        raise UserError(f"--horizon must be 1 to {most}, the steps of an episode after {context} frames, not {horizon}")
    return most if horizon is None else horizon


def check_checkpoints(found: Sequence[Checkpoint], loaded: LoadedModel, model_path: Path) -> None:
    """UserError if a run is of another environment than the model, or its policy reads what the model does not predict.

    Weights name no environment: the runs must then be of the same one.
    """
    pixels = "pixels" in loaded.model.observations
    settings = trained_in(model_path)
    name: object = model_path
    if settings is None:
        settings, name = env_settings(found[0].run.config), found[0].run.folder
    for each in {each.run.folder: each for each in found}.values():
        folder = each.run.folder
        require_same_env(env_settings(each.run.config), folder, settings, name, pixels=pixels)
        with closing(env_factory(each.run.config, evaluation=True)(seed=0, **env_options(loaded.model))) as env:
            require_fit(loaded.model, env, folder)
        require_readable(loaded.model, each.run.policy.observations, folder)


def play(
    checkpoint: Checkpoint, model: Continued, bonus: float, protocol: Protocol, on_steps: Callable[[int], Any]
) -> Episodes:
    """Play the episodes of a checkpoint in both worlds.

    Args:
        checkpoint: whose policy acts.
        model: imagines.
        bonus: bonus at success that the model's rewards contain, which is added to the real ones.
        protocol: what is played.
        on_steps: called with the number of steps of single episodes that were taken.
    """
    run, parts = checkpoint.run, []
    evaluator = Evaluator(
        partial(env_factory(run.config, evaluation=True), **env_options(model)),
        episodes=protocol.episodes,
        max_steps=agent_steps_per_episode(run.config),
        seed=protocol.seed,
        threads=usable_cores(),
    )
    with closing(evaluator):
        numbers = range(protocol.episodes * max(1, len(getattr(evaluator.env, "tasks", []))))
        for first in range(0, len(numbers), SIDE_BY_SIDE):
            together = numbers[first : first + SIDE_BY_SIDE]
            parts.append(_play_together(checkpoint, evaluator, model, bonus, protocol, together, on_steps))
    return Episodes(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _play_together(
    checkpoint: Checkpoint,
    evaluator: Evaluator,
    model: Continued,
    bonus: float,
    protocol: Protocol,
    numbers: range,
    on_steps: Callable[[int], Any],
) -> Episodes:
    policy, context = checkpoint.run.policy, model.context_length
    on_step = partial(on_steps, len(numbers))
    played = evaluator.play_together(policy.policy, numbers, on_step, opening=context)
    shortest = int(played.lengths.min())
    if played.opening is None or shortest < context:
        raise UserError(
            f"{checkpoint}: an episode ends after {shortest} steps, and the world model starts from {context} frames"
        )
    starts = partial(history, played.opening)
    env = imagination_env(model, evaluator.env, starts, len(numbers), protocol.horizon)
    imagined = play_imagined(env, policy, played.memory, protocol.seed + numbers.start, on_step)
    counted = slice(context - 1, context - 1 + protocol.horizon)
    success = played.success[:, counted]
    real = played.reward[:, counted] + bonus * success
    return Episodes(real.sum(1), imagined.sum(1), real.amax(1), imagined.amax(1), success.any(1))


def history(opening: TensorDictBase, _: int, length: int) -> TensorDictBase:
    """The first steps [N, C] as a history [N, length]; a frame stack has copies of the first frame before it.

    The first frame also is the initial one, for a model that starts from that.
    """
    missing = max(0, length - opening.shape[1])
    steps: Any = torch.cat([*[opening[:, :1]] * missing, opening], 1)  # of TensorDicts, which torch does not say
    return steps.set(INITIAL, steps["pixels"][:, :1].expand_as(steps["pixels"])) if "pixels" in steps.keys() else steps
