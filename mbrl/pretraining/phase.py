"""One phase of pretraining: gradient steps on one objective of a world model, in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mbrl.run_folder.checkpoint import Checkpoints
from mbrl.run_folder.parts import ModulePart, OptimizersPart, Part, SchedulerPart, ValuesPart
from mbrl.run_folder.paths import CHECKPOINTS


class Pretrainable(Protocol):
    """Interface of a world model for pretraining.

    Attributes:
        objectives: by phase; called with a batch they give "loss" and detached metrics, all 0-d. Their parameters are
            what the phase trains. optimizers: of the same names.
    """

    objectives: dict[str, nn.Module]

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]: ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights so that a world model can start from them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class Phase:
    """Trains one objective for a number of steps; stands on disk such that it goes on to the bit.

    All random numbers of a step are drawn from its number (and the process's rank), so a checkpoint holds none.

    Args:
        steps: of the optimiser. warmup: of them, over which the learning rate rises from 0; it then falls along a
            cosine to `final_learning_rate_share` of its full value.
        clip_norm: largest norm of a gradient. accumulate: batches to a step.
        ema_decay: of the running mean of the weights that is validated and saved; 0 takes the weights themselves.
        seed: of dropout and whatever else the objective draws.
    """

    def __init__(
        self,
        name: str,
        model: Pretrainable,
        accelerator: Accelerator,
        directory: Path,
        *,
        seed: int,
        steps: int,
        warmup: int,
        final_learning_rate_share: float,
        clip_norm: float,
        accumulate: int,
        ema_decay: float,
    ) -> None:
        self.name, self.steps, self.accumulate, self.clip_norm = name, steps, accumulate, clip_norm
        self.progress: dict[str, Any] = {"step": 0, "wall_time": 0.0}
        self.objective, self._accelerator = model.objectives[name], accelerator
        self._seed = [seed, *name.encode()]
        optimizer = model.optimizers[name]
        share = partial(learning_rate, steps=steps, warmup=warmup, final=final_learning_rate_share)
        self._scheduler = LambdaLR(optimizer, share)
        self._wrapped, self._optimizer = accelerator.prepare(self.objective.train(), optimizer)
        parts: dict[str, Part] = {
            "model": ModulePart(model),
            "optimizers": OptimizersPart({name: optimizer}),
            "scheduler": SchedulerPart(self._scheduler),
            "progress": ValuesPart(self.progress),
        }
        self._averages: AveragedModel | None = None
        if ema_decay:
            self._averages = AveragedModel(self.objective, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
            parts["averages"] = ModulePart(self._averages)
        self._checkpoints = Checkpoints(directory / CHECKPOINTS / name, parts, f"steps of the {name}")
        if accelerator.is_main_process:
            self._checkpoints.clean()
        self._checkpoints.load_latest()

    @property
    def step(self) -> int:
        """Steps taken."""
        return int(self.progress["step"])

    def take_step(self, batches: Iterator[TensorDictBase]) -> dict[str, Tensor]:
        """One step of the optimiser; this process's metrics, means over the step's batches.

        Raises:
            FloatingPointError: the gradient is not finite. The optimiser takes no step; running statistics, such as
                codebooks, have changed.
        """
        metrics = []
        self._accelerator.gradient_accumulation_steps = self.accumulate  # phases may differ
        for number in range(self.step * self.accumulate, (self.step + 1) * self.accumulate):
            self.seed_from(number)
            batch = next(batches).to(self._accelerator.device)
            with self._accelerator.accumulate(self._wrapped):
                metrics.append(self._wrapped(batch))
                self._accelerator.backward(metrics[-1]["loss"])
                if self._accelerator.sync_gradients:
                    metrics[-1]["gradient_norm"] = self._clip(metrics[-1]["loss"])
                self._optimizer.step()
                self._optimizer.zero_grad()
        self._scheduler.step()
        self.progress["step"] += 1
        if self._averages is not None:
            self._averages.update_parameters(self.objective)
        return {**mean(metrics), "learning_rate": torch.tensor(self._rate)}

    def _clip(self, loss: Tensor) -> Tensor:
        norm = self._accelerator.clip_grad_norm_(self.objective.parameters(), self.clip_norm)
        assert isinstance(norm, Tensor)
        if not torch.isfinite(norm + loss.detach()):
            raise FloatingPointError(
                f"the {self.name}'s loss is {float(loss.detach()):.3g} with gradient norm {float(norm):.3g} at its "
                f"step {self.step}: lower {self.name}.learning_rate, or look for values that are not finite in the data"
            )
        return norm

    @property
    def _rate(self) -> float:
        return float(self._scheduler.get_last_lr()[0])

    def seed_from(self, number: int) -> None:
        """Make what is drawn from here on depend on the phase, a batch's number and this process alone."""
        entropy = [*self._seed, number, self._accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The weights that are worth saving, in eval mode, without gradients; afterwards as before."""
        trained = None
        if self._averages is not None:
            trained = {name: value.clone() for name, value in self.objective.state_dict().items()}
            self.objective.load_state_dict(self._averages.module.state_dict())
        self.objective.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.objective.train()
            if trained is not None:
                self.objective.load_state_dict(trained)

    def save(self) -> None:
        """Write a checkpoint; of several processes one does."""
        if self._accelerator.is_main_process:
            self._checkpoints.save(self.step)

    def finish(self) -> None:
        """Leave the weights that are worth saving in the model, the same in every process, and free the optimiser."""
        if self._averages is not None:
            self.objective.load_state_dict(self._averages.module.state_dict())
        for value in self.objective.state_dict().values():
            broadcast(value)  # statistics of batches may differ from process to process
        self._optimizer.zero_grad()
        self._optimizer.state.clear()
        self._accelerator.free_memory()
        self.objective.eval()


def learning_rate(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Share of the full learning rate at a step, counted from 0: linear warm-up, then a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(steps - warmup, 1))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def mean(metrics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each metric, detached, over those batches that have it."""
    names = dict.fromkeys(name for part in metrics for name in part)
    return {name: torch.stack([part[name].detach() for part in metrics if name in part]).mean() for name in names}
