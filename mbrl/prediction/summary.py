"""From raw scores to the rows of a table: one number for each measure and, where there is one, its course."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl.prediction.scores import Judges, Scores
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
    """One measure: its name, its value over all steps and, where it has one, its value at each step of the horizon."""

    name: str
    value: float
    curve: list[float] | None = None


def summarise(scores: Scores, judges: Judges) -> tuple[list[Row], dict[str, str]]:
    """Every measure that the scores allow, in the order of a table, and what had to be left out, with the reason."""
    rows = [*_frames(scores)]
    if judges.i3d is not None:
        rows.append(Row("fvd", frechet_distance(scores["real_features"], scores["features"].flatten(0, 1))))
    rows += [*_control(scores)]
    if "reward" in scores:
        rows.append(_row("reward_error", reward_error(scores["reward"], scores["real_reward"])))
        if "success" in scores and judges.threshold is not None:
            rows += _success(scores, judges.threshold)
    if judges.probes:
        rows.append(_row("gripper_cm", distance_cm(scores["hand"], scores["real_hand"])))
        rows.append(_row("gripper_cm_real", distance_cm(scores["seen_hand"], scores["real_hand"])))
    for name, size in scores.codebooks.items():
        used, perplexity = codebook_usage(scores[f"codes/{name}"], size)
        rows += [Row(f"{name}_codes_used", used), Row(f"{name}_codes_perplexity", perplexity)]
    return rows, _missing(scores, judges)


def _missing(scores: Scores, judges: Judges) -> dict[str, str]:
    """What cannot be measured at all, by name, and why."""
    rewards = "the model predicts no rewards, or the data have none"
    success = "it is read off rewards, and the data must hold both steps with success and steps without"
    told = "reward" in scores and "success" in scores and judges.threshold is not None
    alone = "zero/mse" in scores and "shuffled/mse" not in scores
    reasons = {
        "lpips": ("lpips" in scores, "give its weights with --lpips"),
        "fvd": (judges.i3d is not None, "give its weights with --fvd"),
        "controllability": ("zero/mse" in scores, "the model takes no actions"),
        "controllability, shuffled": (not alone, "there is one segment only"),
        "reward error": ("reward" in scores, rewards),
        "success": (told, success),
        "gripper": (bool(judges.probes), "it takes two episodes with Meta-World's state"),
        "codes": (bool(scores.codebooks), "the model has no codebooks"),
    }
    return {name: reason for name, (there, reason) in reasons.items() if not there}


def _row(name: str, curve: Tensor) -> Row:
    return Row(name, float(curve.mean()), curve.tolist())


def _frames(scores: Scores) -> Iterator[Row]:
    """The imagined frames' scores and, as published, the same with the reconstructed context frames counted in."""
    for name in FRAME_MEASURES:
        if name not in scores:
            continue
        imagined = scores[name]
        context = scores[f"context/{name}"].expand(-1, imagined.shape[1], -1)
        whole = torch.cat([context, imagined], -1)
        yield _row(name, imagined.mean((0, 1)))
        yield Row(f"{name}_with_context", float(whole.mean()))
        if imagined.shape[1] > 1:
            yield Row(f"{name}_best", float(best_of_samples(name, imagined)))
            yield Row(f"{name}_with_context_best", float(best_of_samples(name, whole)))
        yield _row(f"{name}_still", scores[f"still/{name}"].mean((0, 1)))


def _control(scores: Scores) -> Iterator[Row]:
    """Frames under other actions, and what the true ones gain over them (above 0: the model heeds its actions)."""
    for other in OTHER_ACTIONS:
        for name, sign in (("mse", -1), ("psnr", 1)):
            if f"{other}/{name}" in scores:
                curve = scores[f"{other}/{name}"].mean((0, 1))
                yield _row(f"{name}_{other}", curve)
                yield _row(f"{name}_gap_{other}", sign * (scores[name].mean((0, 1)) - curve))


def _success(scores: Scores, threshold: float) -> list[Row]:
    """Success read off imagined rewards, and off real ones: what the threshold itself gets wrong.

    The reward is what an agent learns from: an imagined reward as high as those of real successes is what leads it
    astray, whatever the frames show.
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
