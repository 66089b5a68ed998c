"""Imagine segments and score what comes out: raw scores by segment, sample and step.

B segments, K samples of each, C context frames, H horizon, A action width, D features, P = 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mbrl.prediction.held_out import HAND, Segments
from worldmodel.base import WorldModel
from worldmodel.metrics.i3d import I3D
from worldmodel.metrics.images import Distance, frame_scores
from worldmodel.metrics.probe import PositionProbe

FOLDS = 2  # a probe reads the episodes that it was not fitted to


@dataclass(frozen=True)
class Judges:
    """What scores are made with beside pixels; each is None or empty where it cannot be had."""

    lpips: Distance | None = None
    i3d: I3D | None = None
    probes: tuple[PositionProbe, ...] = ()  # probe f reads the segments of episodes e with e % FOLDS == f
    threshold: float | None = None  # the reward, bonus included, from which on a step counts as a success
    success_bonus: float = 0.0  # what the model's rewards hold beside those of the data where the task is solved


@dataclass
class Scores:
    """Raw scores by name, each [M, ...], and the codebooks' sizes.

    mse, psnr, ssim, lpips [M, K, H]; the same with "context/" [M, 1, C] (reconstructed context frames), and with
    "still/" (the last context frame in place of the imagined one), "shuffled/" and "zero/" (imagined under other
    actions) [M, 1, H]. reward [M, K, H] with real_reward and success [M, H]. hand [M, K, H, 3], seen_hand [M, 1, H, 3]
    (read from real frames) and real_hand [M, H, 3]. features [M, K, D] and real_features [M, D]. codes/NAME.
    """

    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    codebooks: dict[str, int] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parts.setdefault(name, []).append(value.cpu())

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat(self.parts[name])

    def __contains__(self, name: str) -> bool:
        return name in self.parts


@dataclass(frozen=True)
class Imagining:
    """What is imagined: K samples of each segment, `batch_size` rollouts side by side, codes drawn from `seed`.

    uses_actions: False for a model without them, which then are neither passed on nor exchanged.
    """

    samples: int
    batch_size: int
    seed: int
    uses_actions: bool = True

    def rollouts(self, segments: int) -> int:
        """How many are made of so many segments."""
        others = (1 + (segments > 1)) if self.uses_actions else 0
        return segments * (self.samples + others)


def score(
    model: WorldModel,
    segments: Segments,
    judges: Judges,
    plan: Imagining,
    on_rollouts: Callable[[int], Any] = lambda count: None,
) -> Scores:
    """Imagine every segment K times under its own actions, and once each under others, and score it all.

    torch's own generators are left as they were. `on_rollouts` is called with how many more were done.
    """
    scores, device, rows = Scores(), next(model.parameters()).device, max(1, plan.batch_size // plan.samples)
    taken = segments.leading("action") if plan.uses_actions else torch.zeros(*segments.leading("pixels").shape[:2], 0)
    others = other_actions(taken, plan.seed) if plan.uses_actions else {}
    training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        for first in range(0, len(segments), rows):
            part = slice(first, first + rows)
            batch = segments[part].to(device)
            torch.manual_seed(plan.seed + first)
            chunks = []
            for done in range(0, plan.samples, plan.batch_size):
                samples = min(plan.batch_size, plan.samples - done)
                chunks.append(_imagined(model, batch, taken[part].to(device), samples, judges))
                on_rollouts(len(batch) * samples)
            scores.add({name: torch.cat([chunk[name] for chunk in chunks], 1) for name in chunks[0]})
            scores.add(_real(model, batch, judges, scores.codebooks))
            for name, other in others.items():
                torch.manual_seed(plan.seed + first)  # the same luck as under the true actions
                rollout = model.predict(batch.before(), other[part].to(device))
                scores.add(_compared(f"{name}/", rollout["pixels"], batch.after("pixels")))
                on_rollouts(len(batch))
    model.train(training)
    return scores


def other_actions(actions: Tensor, seed: int) -> dict[str, Tensor]:
    """None at all ("zero") and, from two segments on, those of another segment ("shuffled"), each [M, H, A]."""
    others = {"zero": torch.zeros_like(actions)}
    if len(actions) > 1:
        order = torch.randperm(len(actions), generator=torch.Generator().manual_seed(seed))
        shuffled = torch.empty_like(actions)
        shuffled[order] = actions[order.roll(1)]  # nobody keeps their own
        others["shuffled"] = shuffled
    return others


def _imagined(model: WorldModel, batch: Segments, actions: Tensor, samples: int, judges: Judges) -> dict[str, Tensor]:
    """Scores [B, samples, ..] of rollouts under the true actions."""
    rollout = model.predict(batch.before(), actions, samples).unflatten(0, (-1, samples))
    pixels = rollout["pixels"]
    out = frame_scores(pixels, batch.after("pixels"), judges.lpips)
    if "reward" in rollout.keys() and "reward" in batch:
        out["reward"] = rollout["reward"].squeeze(-1)
    if judges.probes:
        out["hand"] = _hand(judges.probes, pixels, batch.episode)
    if judges.i3d is not None:
        context = model.reconstruct(batch.before()).unsqueeze(1).expand(-1, samples, -1, -1, -1, -1)
        videos = torch.cat([context, pixels], 2).flatten(0, 1)
        out["features"] = judges.i3d.features(videos).unflatten(0, (-1, samples))
    return out


def _real(model: WorldModel, batch: Segments, judges: Judges, codebooks: dict[str, int]) -> dict[str, Tensor]:
    """What belongs to the real segments alone; notes the codebooks' sizes."""
    real, context = batch.after("pixels"), batch.before()["pixels"]
    out = _compared("still/", context[:, -1:].expand_as(real), real, judges.lpips)
    out |= _compared("context/", model.reconstruct(batch.before()), context, judges.lpips)
    if "reward" in batch:
        bonus = judges.success_bonus * batch.leading("success").float() if "success" in batch else 0.0
        out["real_reward"] = (batch.leading("reward") + bonus).squeeze(-1)
    if "success" in batch:
        out["success"] = batch.leading("success").squeeze(-1)
    if judges.probes:
        out["real_hand"] = batch.after("state")[..., HAND]
        out["seen_hand"] = _hand(judges.probes, real.unsqueeze(1), batch.episode)
    if judges.i3d is not None:
        out["real_features"] = judges.i3d.features(batch.records["pixels"])
    for name, (codes, size) in model.codes(batch.with_goal()).items():
        out[f"codes/{name}"], codebooks[name] = codes, size
    return out


def _compared(prefix: str, pixels: Tensor, real: Tensor, lpips: Distance | None = None) -> dict[str, Tensor]:
    """Scores [B, 1, ..] of one sample each: frames [B, .., 3, R, R]."""
    scores = frame_scores(pixels.unsqueeze(1), real, lpips)
    return {f"{prefix}{name}": value for name, value in scores.items()}


def _hand(probes: tuple[PositionProbe, ...], frames: Tensor, episode: Tensor) -> Tensor:
    """Frames [B, K, H, 3, R, R] to positions [B, K, H, P], each segment read by its fold's probe."""
    read = torch.stack([probe.read(frames) for probe in probes])  # [FOLDS, B, K, H, P]
    return read[episode % FOLDS, torch.arange(len(episode), device=episode.device)]
