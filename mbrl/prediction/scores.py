"""Imagine segments and score them: raw scores for each segment, sample and step.

B segments, K samples of each, C context frames, H horizon, A action width, D features, P = 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mbrl.device import fork_rng
from mbrl.prediction.held_out import GRIPPER, Segments
from worldmodel.base import WorldModel
from worldmodel.metrics.control import moving_error
from worldmodel.metrics.i3d import I3D
from worldmodel.metrics.images import Distance, frame_scores
from worldmodel.metrics.probe import PositionProbe

FOLDS = 2  # groups of episodes; each group is read by a probe that was fitted to the others


@dataclass(frozen=True)
class MetricModels:
    """Networks and constants that scores need beside the frames.

    Attributes:
        lpips: LPIPS, or None to leave it out.
        i3d: feature network of FVD, or None to leave it out.
        probes: estimate the gripper's position from frames; empty to leave it out. Probe f reads segments of episodes e
            with e % FOLDS == f.
        threshold: reward, success bonus included, from which a step counts as a success. None if it is unknown.
        success_bonus: bonus at success that the model's rewards contain and those of the data do not.
    """

    lpips: Distance | None = None
    i3d: I3D | None = None
    probes: tuple[PositionProbe, ...] = ()
    threshold: float | None = None
    success_bonus: float = 0.0


@dataclass
class Scores:
    """Raw scores by name, each [M, ...], and the sizes of the codebooks.

    | name | shape | |
    |---|---|---|
    | mse, psnr, ssim, lpips | [M, K, H] | imagined frames |
    | context/mse, ... | [M, 1, C] | reconstructed context frames |
    | still/mse, ... | [M, 1, H] | copies of the last context frame |
    | shuffled/mse, zero/mse, ... | [M, 1, H] | frames imagined under other actions |
    | moving/imagined, moving/still, moving/reconstructed | [M, K or 1, H] | squared error of the pixels that move |
    | moving/pixels | [M, 1, H] | how many move |
    | reward | [M, K, H] | imagined rewards |
    | observed_reward | [M, H] | rewards that the model reads on real frames |
    | real_reward, success | [M, H] | rewards, with the success bonus, and successes of the data |
    | gripper | [M, K, H, 3] | positions estimated from imagined frames |
    | gripper_read | [M, 1, H, 3] | positions estimated from real frames |
    | gripper_real | [M, H, 3] | positions in the data |
    | features, real_features | [M, K, D], [M, D] | I3D features of imagined and real videos |
    | codes/NAME | [M, ...] | codes of the real segment |
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
class RolloutPlan:
    """How the segments are imagined.

    Attributes:
        samples: K, rollouts of each segment.
        batch_size: largest number of rollouts in a batch.
        seed: seed of sampled codes and of the shuffled actions.
        uses_actions: False for a model without actions, which is measured without other actions too.
    """

    samples: int
    batch_size: int
    seed: int
    uses_actions: bool = True

    def rollouts(self, segments: int) -> int:
        """Number of rollouts of that many segments."""
        others = (1 + (segments > 1)) if self.uses_actions else 0
        return segments * (self.samples + others)


def score(
    model: WorldModel,
    segments: Segments,
    metrics: MetricModels,
    plan: RolloutPlan,
    on_rollouts: Callable[[int], Any] = lambda count: None,
) -> Scores:
    """Imagine every segment K times under its own actions and once under each of the other actions, and score all.

    The state of torch's global generators does not change.

    Args:
        model: the world model.
        segments: the segments.
        metrics: networks and constants of the scores.
        plan: how to imagine.
        on_rollouts: called with the number of rollouts that were completed.
    """
    scores, device, rows = Scores(), model.device, max(1, plan.batch_size // plan.samples)
    taken = segments.leading("action") if plan.uses_actions else torch.zeros(*segments.leading("pixels").shape[:2], 0)
    others = other_actions(taken, plan.seed) if plan.uses_actions else {}
    training = model.training
    model.eval()
    with fork_rng(), torch.no_grad():
        for first in range(0, len(segments), rows):
            part = slice(first, first + rows)
            batch = segments[part].to(device)
            torch.manual_seed(plan.seed + first)
            chunks = []
            for done in range(0, plan.samples, plan.batch_size):
                samples = min(plan.batch_size, plan.samples - done)
                chunks.append(_imagined(model, batch, taken[part].to(device), samples, metrics))
                on_rollouts(len(batch) * samples)
            scores.add({name: torch.cat([chunk[name] for chunk in chunks], 1) for name in chunks[0]})
            scores.add(_real(model, batch, metrics, scores.codebooks))
            for name, other in others.items():
                torch.manual_seed(plan.seed + first)  # sampling noise is the same as under the true actions
                rollout = model.predict(batch.before(), other[part].to(device))
                scores.add(_compared(f"{name}/", rollout["pixels"], batch.after("pixels")))
                on_rollouts(len(batch))
    model.train(training)
    return scores


def other_actions(actions: Tensor, seed: int) -> dict[str, Tensor]:
    """Zero actions and, from two segments on, the actions of another segment ("shuffled"), each [M, H, A]."""
    others = {"zero": torch.zeros_like(actions)}
    if len(actions) > 1:
        order = torch.randperm(len(actions), generator=torch.Generator().manual_seed(seed))
        shuffled = torch.empty_like(actions)
        shuffled[order] = actions[order.roll(1)]  # a cyclic shift of a permutation: no segment keeps its own
        others["shuffled"] = shuffled
    return others


def _imagined(
    model: WorldModel, batch: Segments, actions: Tensor, samples: int, metrics: MetricModels
) -> dict[str, Tensor]:
    """Scores [B, samples, ..] of rollouts under the true actions."""
    rollout = model.predict(batch.before(), actions, samples).unflatten(0, (-1, samples))
    pixels = rollout["pixels"]
    out = frame_scores(pixels, batch.after("pixels"), metrics.lpips)
    out["moving/imagined"] = torch.stack([_moving(batch, sample)[0] for sample in pixels.unbind(1)], 1)
    if "reward" in rollout.keys() and "reward" in batch:
        out["reward"] = rollout["reward"].squeeze(-1)
    if metrics.probes:
        out["gripper"] = _read_gripper(metrics.probes, pixels, batch.episode)
    if metrics.i3d is not None:
        context = model.reconstruct(batch.before()).unsqueeze(1).expand(-1, samples, -1, -1, -1, -1)
        videos = torch.cat([context, pixels], 2).flatten(0, 1)
        out["features"] = metrics.i3d.features(videos).unflatten(0, (-1, samples))
    return out


def _real(model: WorldModel, batch: Segments, metrics: MetricModels, codebooks: dict[str, int]) -> dict[str, Tensor]:
    """Scores of the real segments, which do not depend on a sample. Stores the sizes of codebooks in `codebooks`."""
    real, context = batch.after("pixels"), batch.before()["pixels"]
    still = context[:, -1:].expand_as(real)
    out = _compared("still/", still, real, metrics.lpips)
    out["moving/still"], out["moving/pixels"] = (part.unsqueeze(1) for part in _moving(batch, still))
    if type(model).reconstruct is not WorldModel.reconstruct:  # which returns the real frames
        before, after = model.reconstruct(batch.with_goal()).tensor_split([batch.context], 1)
        out |= _compared("context/", before, context, metrics.lpips)
        out["moving/reconstructed"] = _moving(batch, after)[0].unsqueeze(1)
    if "reward" in batch:
        if model.reads_reward:
            out["observed_reward"] = _observed_rewards(model, batch)
        bonus = metrics.success_bonus * batch.leading("success").float() if "success" in batch else 0.0
        out["real_reward"] = (batch.leading("reward") + bonus).squeeze(-1)
    if "success" in batch:
        out["success"] = batch.leading("success").squeeze(-1)
    if metrics.probes:
        out["gripper_real"] = batch.after("state")[..., GRIPPER]
        out["gripper_read"] = _read_gripper(metrics.probes, real.unsqueeze(1), batch.episode)
    if metrics.i3d is not None:
        out["real_features"] = metrics.i3d.features(batch.records["pixels"])
    for name, (codes, size) in model.codes(batch.with_goal()).items():
        out[f"codes/{name}"], codebooks[name] = codes, size
    return out


def _moving(batch: Segments, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of the pixels that move and their number, each [B, H], in the place of the H future frames."""
    return moving_error(frames, batch.after("pixels"), batch.before()["pixels"][:, -1])


def _observed_rewards(model: WorldModel, batch: Segments) -> Tensor:
    """Rewards [B, H] of the true actions, read on the real frames that they lead to."""
    state, rewards, future = model.start(batch.before()), [], batch.records[:, batch.context :]
    actions = batch.leading("action") if model.action_dim else future["pixels"].new_zeros(*future.batch_size, 0)
    for action, observed in zip(actions.unbind(1), future.unbind(1), strict=True):
        state, prediction = model.observe(state, action, observed)
        rewards.append(prediction["reward"])
    return torch.cat(rewards, 1)


def _compared(prefix: str, pixels: Tensor, real: Tensor, lpips: Distance | None = None) -> dict[str, Tensor]:
    """Scores [B, 1, ..] of frames [B, .., 3, R, R], one sample of each segment."""
    scores = frame_scores(pixels.unsqueeze(1), real, lpips)
    return {f"{prefix}{name}": value for name, value in scores.items()}


def _read_gripper(probes: tuple[PositionProbe, ...], frames: Tensor, episode: Tensor) -> Tensor:
    """Frames [B, K, H, 3, R, R] to positions [B, K, H, P]. Each segment is read by the probe of its fold."""
    read = torch.stack([probe.read(frames) for probe in probes])  # [FOLDS, B, K, H, P]
    return read[episode % FOLDS, torch.arange(len(episode), device=episode.device)]
