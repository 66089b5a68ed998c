"""Summarise raw scores as rows of a table: a number for each measure and, for most, its values along the horizon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl.prediction.scores import MetricModels, Scores
from worldmodel.metrics.control import (
    Confusion,
    codebook_usage,
    confusion,
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
    """

    name: str
    value: float
    curve: list[float] | None = None


def summarise(scores: Scores, metrics: MetricModels) -> tuple[list[Row], dict[str, str]]:
    """Compute every measure for which there are scores.

    Returns:
        The rows in the order of the table, and the measures that are left out with the reason.
    """
    rows = [*_frames(scores)]
    if metrics.i3d is not None:
        rows.append(Row("fvd", frechet_distance(scores["real_features"], scores["features"].flatten(0, 1))))
    rows += [*_control(scores)]
    if "reward" in scores:
        rows.append(_row("reward_error", reward_error(scores["reward"], scores["real_reward"])))
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
        "reward error": ("reward" in scores, rewards),
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
