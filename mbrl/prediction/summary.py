"""Summarise raw scores as rows of a table: a number for each measure and, for most, its values along the horizon."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl.prediction.ranking import Ranking
from mbrl.prediction.scores import MetricModels, Scores
from worldmodel.metrics.control import (
    LEVELS,
    Confusion,
    at_level,
    codebook_usage,
    confusion,
    correlation,
    decibels,
    distance_cm,
    reward_error,
)
from worldmodel.metrics.images import best_of_samples, frechet_distance

FRAME_MEASURES = ("mse", "psnr", "ssim", "lpips")
OTHER_ACTIONS = ("shuffled", "zero")


class Row(NamedTuple):
    """One measure.

    Attributes:
        name: name of the measure, see `mbrl.prediction.measures`.
        value: mean over all steps.
        curve: value at each step of the horizon, [H]; None for measures without.
        standard_error: of the value; None for measures without.
    """

    name: str
    value: float
    curve: list[float] | None = None
    standard_error: float | None = None


def summarise(scores: Scores, metrics: MetricModels) -> tuple[list[Row], dict[str, str]]:
    """Compute every measure for which there are scores.

    Returns:
        The rows in the order of the table, and the measures that are left out with the reason.
    """
    rows = [*_frames(scores)]
    if metrics.i3d is not None:
        rows.append(Row("fvd", frechet_distance(scores["real_features"], scores["features"].flatten(0, 1))))
    rows += [*_moving(scores), *_control(scores)]
    if "reward" in scores:
        rows.append(_row("reward_error", reward_error(scores["reward"], scores["real_reward"])))
        rows += _rewards(scores)
        if "success" in scores and metrics.threshold is not None:
            rows += _success(scores, metrics.threshold)
    if metrics.probes:
        rows.append(_row("gripper_cm", distance_cm(scores["gripper"], scores["gripper_real"])))
        rows.append(_row("gripper_cm_real", distance_cm(scores["gripper_read"], scores["gripper_real"])))
    for name, size in scores.codebooks.items():
        used, perplexity = codebook_usage(scores[f"codes/{name}"], size)
        rows += [Row(f"{name}_codes_used", used), Row(f"{name}_codes_perplexity", perplexity)]
    return rows, _missing(scores, metrics)


def _missing(scores: Scores, metrics: MetricModels) -> dict[str, str]:
    """The measures that are left out, with the reason."""
    rewards = "the model predicts no rewards, or the data contain none"
    success = "it needs rewards, and data with steps of success and steps without"
    has_success = "reward" in scores and "success" in scores and metrics.threshold is not None
    alone = "zero/mse" in scores and "shuffled/mse" not in scores
    reasons = {
        "lpips": ("lpips" in scores, "give its weights with --lpips"),
        "fvd": (metrics.i3d is not None, "give its weights with --fvd"),
        "controllability": ("zero/mse" in scores, "the model takes no actions"),
        "controllability, shuffled": (not alone, "there is only one segment"),
        "moving pixels": (bool(scores["moving/pixels"].any()), "no pixel moves"),
        "reward error": ("reward" in scores, rewards),
        "rewards on real frames": ("reward" not in scores or "observed_reward" in scores, "the model reads none"),
        "success": (has_success, success),
        "gripper": (bool(metrics.probes), "it needs two episodes with Meta-World's state"),
        "codes": (bool(scores.codebooks), "the model has no codebooks"),
    }
    return {name: reason for name, (there, reason) in reasons.items() if not there}


def _row(name: str, curve: Tensor) -> Row:
    return Row(name, float(curve.mean()), curve.tolist())


def _frames(scores: Scores) -> Iterator[Row]:
    """Scores of imagined frames and, as in published tables, the same with reconstructed context frames included."""
    for name in FRAME_MEASURES:
        if name not in scores:
            continue
        imagined = scores[name]
        counted = {name: imagined}
        if f"context/{name}" in scores:  # a model that reconstructs its context, as iVideoGPT does
            context = scores[f"context/{name}"].expand(-1, imagined.shape[1], -1)
            counted[f"{name}_with_context"] = torch.cat([context, imagined], -1)
        yield _row(name, imagined.mean((0, 1)))
        yield from (Row(key, float(values.mean())) for key, values in counted.items() if key != name)
        if imagined.shape[1] > 1:
            yield from (Row(f"{key}_best", float(best_of_samples(name, values))) for key, values in counted.items())
        yield _row(f"{name}_still", scores[f"still/{name}"].mean((0, 1)))


def _moving(scores: Scores) -> Iterator[Row]:
    """PSNR of the pixels that move, of imagined and reconstructed frames and of copies of the last context frame."""
    moving = scores["moving/pixels"].sum((0, 1))  # [H]
    if not moving.sum():
        return
    for part, ending in (("imagined", ""), ("still", "_still"), ("reconstructed", "_reconstructed")):
        if f"moving/{part}" in scores:
            error = scores[f"moving/{part}"].mean(1).sum(0)
            curve = decibels(error / moving).tolist() if moving.all() else None  # a still step has no decibels
            yield Row(f"psnr_moving{ending}", float(decibels(error.sum() / moving.sum())), curve)


def _rewards(scores: Scores) -> Iterator[Row]:
    """How well rewards are predicted where the true reward is low, middle or high, on imagined and on real frames."""
    imagined, real = scores["reward"], scores["real_reward"]
    predicted = {"": imagined}
    if "observed_reward" in scores:
        predicted["_observed"] = scores["observed_reward"].unsqueeze(1)
    chosen = {"": torch.ones_like(real, dtype=torch.bool)} | {f"_{level}": at_level(real, level) for level in LEVELS}
    for level, steps in chosen.items():
        yield Row(f"reward_steps{level}", float(steps.sum()))
        if not steps.any():
            continue
        yield Row(f"reward_true{level}", float(real[steps].mean()))
        for ending, values in predicted.items():
            pairs = [(sample[steps], real[steps]) for sample in values.unbind(1)]
            found, true = (torch.cat(side) for side in zip(*pairs, strict=True))
            yield Row(f"reward_mean{level}{ending}", float(found.mean()))
            if level + ending:  # all imagined steps have it as `reward_error`, with its curve
                yield Row(f"reward_error{level}{ending}", float((found - true).abs().mean()))
            related = float(correlation(found, true))
            if math.isfinite(related):  # a constant correlates with nothing
                yield Row(f"reward_correlation{level}{ending}", related)


def ranking_rows(ranking: Ranking) -> tuple[list[Row], dict[str, str]]:
    """The rows of a ranking, and the measures that are left out with the reason."""
    rows = [
        Row(f"plan_rank_{name}", found.mean, standard_error=found.standard_error)
        for name, found in ranking.correlations.items()
    ]
    return rows, {f"plan_rank_{name}": reason for name, reason in ranking.left_out.items()}


def _control(scores: Scores) -> Iterator[Row]:
    """Scores under other actions, and the gain of the true actions over them: above 0, the model uses its actions."""
    for other in OTHER_ACTIONS:
        for name, sign in (("mse", -1), ("psnr", 1)):
            if f"{other}/{name}" in scores:
                curve = scores[f"{other}/{name}"].mean((0, 1))
                yield _row(f"{name}_{other}", curve)
                yield _row(f"{name}_gap_{other}", sign * (scores[name].mean((0, 1)) - curve))


def _success(scores: Scores, threshold: float) -> list[Row]:
    """Success detected from imagined rewards and, as the error of the detection itself, from real rewards.

    Rewards are used and not frames because the agent learns from rewards: it exploits imagined rewards that are as high
    as those of real successes.
    """
    imagined = confusion(scores["reward"] >= threshold, scores["success"].unsqueeze(1))
    real = confusion(scores["real_reward"] >= threshold, scores["success"])
    return [Row("success_threshold", threshold), *_rates("", imagined), *_rates("_real", real)]


def _rates(ending: str, counts: Confusion) -> list[Row]:
    return [
        Row(f"success_precision{ending}", counts.precision),
        Row(f"success_recall{ending}", counts.recall),
        Row(f"success_hallucinated{ending}", counts.hallucinated),
    ]
