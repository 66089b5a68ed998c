"""Logging of pretraining: metrics, validation on held-out segments, sample videos, progress, memory.

B batch, T time, C context frames.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from tensordict import TensorDict
from torch import Tensor
from tqdm import tqdm

from mbrl.data.mixture import Mixture
from mbrl.pretraining.phase import Phase, mean
from mbrl.processes.usage import peak_memory
from mbrl.run_folder.logger import MetricsWriter
from mbrl.run_folder.videos import imagination_video, write_comparison
from mbrl.settings.memory import GIB
from worldmodel.base import WorldModel

LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


class Reports:
    """Reports of one phase. Every process makes them; the first one writes.

    Args:
        model: the world model; its reconstructions and rollouts are shown.
        held_out: batches for validation and videos. batches, segments: how many of them, and of a batch's rows.
        first: steps of earlier phases; rows are numbered over all phases.
    """

    def __init__(
        self,
        output: Path,
        phase: Phase,
        model: WorldModel,
        accelerator: Accelerator,
        held_out: Mixture,
        *,
        batches: int,
        segments: int,
        first: int,
    ) -> None:
        self._phase, self._model, self._accelerator, self._output = phase, model, accelerator, output
        self._held_out, self._batches, self._segments, self._first = held_out, batches, segments, first
        self._main, self._previous = accelerator.is_main_process, (phase.step, time.monotonic())
        last = first + phase.step
        self._metrics = MetricsWriter(output, "step", last or -1) if self._main else None
        self._bar = tqdm(
            total=phase.steps,
            initial=phase.step,
            desc=phase.name,
            unit="step",
            disable=not self._main,
            mininterval=0.5 if sys.stderr.isatty() else LINE_SECONDS,
        )

    def tick(self) -> None:
        """One step more is done."""
        self._bar.update()

    def log(self, metrics: dict[str, Tensor]) -> None:
        """Write the means over all processes of a step's metrics, and the peak memory of the first process."""
        step, now = self._phase.step, time.monotonic()
        values = torch.stack([value.float().to(self._accelerator.device) for value in metrics.values()])
        values = self._accelerator.reduce(values, "mean")
        steps, seconds = self._previous
        self._previous = (step, now)
        named = dict(zip(metrics, values.tolist(), strict=True))
        self._bar.set_postfix(loss=f"{named['loss']:.4g}", refresh=False)
        speed = {"time/steps_per_second": (step - steps) / max(now - seconds, 1e-9)}
        memory = {"memory/peak_gib": peak_memory(self._accelerator.device) / GIB}
        self._write(self._phase.name, named, speed | memory, wall_time=round(self._phase.progress["wall_time"], 3))

    def validate(self) -> None:
        """Write the mean metrics over the same batches each time."""
        if not self._main:
            return
        metrics, device = [], self._accelerator.device
        with self._phase.evaluating():
            for number in range(self._batches):
                self._phase.seed_from(number)
                metrics.append(self._phase.objective(self._held_out[number].to(device)))
        values = {name: float(value) for name, value in mean(metrics).items()}
        self._bar.set_postfix(validation_loss=f"{values['loss']:.4g}", refresh=False)
        self._write(f"validation/{self._phase.name}", values, {})

    def sample(self) -> None:
        """Write videos/PHASE-STEP.mp4 and .png: real | reconstructed or imagined | difference; of rewards, nothing."""
        if not self._main or self._phase.name not in SAMPLES:
            return
        segments = self._held_out[0][: self._segments].to(self._accelerator.device)
        segments["goal"] = segments["pixels"][:, -1:].expand_as(segments["pixels"])  # for a model that is given one
        path = self._output / "videos" / f"{self._phase.name}-{self._phase.step:07d}.mp4"
        with self._phase.evaluating():
            self._phase.seed_from(0)
            SAMPLES[self._phase.name](self._model, segments, path)

    def close(self) -> None:
        self._bar.close()
        if self._metrics is not None:
            self._metrics.close()

    def _write(self, group: str, values: dict[str, float], others: dict[str, float], **counters: float) -> None:
        if self._metrics is not None:
            named = {f"{group}/{name}": value for name, value in values.items()}
            self._metrics.write({"step": self._first + self._phase.step, **counters}, named | others)


def reconstruction_video(model: WorldModel, segments: TensorDict, path: Path) -> None:
    """Segments [B, T] beside what the tokenizer makes of them."""
    painted = model.reconstruct(segments)
    real, length = segments["pixels"].flatten(0, 1).cpu(), segments.shape[1]
    marks = torch.ones(len(real), dtype=torch.bool)
    write_comparison(path, real, painted.flatten(0, 1).cpu(), marks, range(length), "reconstructed")


def rollout_video(model: WorldModel, segments: TensorDict, path: Path) -> None:
    """Segments [B, T] beside what the model imagines of each after its first C frames, under its actions."""
    horizon = min(model.max_horizon, segments.shape[1] - model.context_length)
    shown = segments[:, : model.context_length + horizon].clone()
    if "action" not in shown.keys():
        shown["action"] = torch.zeros(*shown.shape, 1, device=shown.device)  # a model without actions reads none
    imagination_video(model, shown.reshape(-1), horizon, path)


SAMPLES = {"tokenizer": reconstruction_video, "transformer": rollout_video}
