"""mbrl pretrain: trains a world model on folders of episodes, one phase after the other.

Under `torchrun` (or `accelerate launch`) several processes share each batch. Their gradients are those of one process
with the joint batch, except for normalisation over a batch: the weights of moving pixels are
those of the share of each process.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mbrl.checks.sizes import FLOAT
from mbrl.checks.typed import require_types
from mbrl.data.mixture import loader
from mbrl.device import cpu_threads
from mbrl.errors import UserError
from mbrl.malloc import keep_freed_memory
from mbrl.pretraining.build import PretrainingRun, build, own_device, weight_by_folder
from mbrl.pretraining.phase import Phase
from mbrl.pretraining.reports import GIB, Reports, peak_memory
from mbrl.pretraining.settings import TYPES
from mbrl.processes.tracker import start_quietly
from mbrl.processes.workers import end_with_parent, naming_dead_loaders, starting_workers
from mbrl.settings.memory import require_memory

PHASES = ("tokenizer", "transformer")
WARMUP = "tokenizer.codebooks.moving_average.warmup"
NOT_OF_A_PHASE = ("learning_rate", "weight_decay")

_log = logging.getLogger(__name__)


def run(config: DictConfig) -> Path | None:
    """Train the phases of one world model. Continues from the last checkpoint in `output`, if there is one.

    Args:
        config: Settings, see configs/pretrain.yaml.

    Returns:
        The output folder, on the main process: weights (tokenizer/, transformer/), config.yaml,
        metrics.jsonl, TensorBoard events, checkpoints, videos. None on the others.

    Raises:
        UserError: The settings or the data do not fit together.
    """
    check(config)
    start_quietly()
    keep_freed_memory()
    if "LOCAL_RANK" in os.environ:
        end_with_parent()  # the launcher, such as torchrun
    with cpu_threads(config.threads):
        parts = build(config)
        _train_phases(config, parts)
        if parts.accelerator.is_main_process:
            parts.model.save_pretrained(parts.output)
            _log.info("peak memory %.2f GiB", peak_memory(parts.accelerator.device) / GIB)
        # The wrapped models first: the last reference to the process group must not be one of theirs, which is dropped
        # with the GIL held, while a thread of the group waits for the GIL to free its last message.
        parts.accelerator.free_memory()
        gc.collect()  # they are in cycles
        parts.accelerator.end_training()
        if parts.lock is not None:
            parts.lock.release()
        return parts.output if parts.accelerator.is_main_process else None


def _train_phases(config: DictConfig, run: PretrainingRun) -> None:
    """Train the phases that are not done; their weights are then in the model."""
    for name in PHASES:
        if config[name].steps > 0:
            phase = build_phase(config, run, name)
            if phase.step < phase.steps:
                with run.stop.on_sigterm(), naming_dead_loaders():
                    train(config, run, phase)
            elif run.accelerator.is_main_process:
                _log.warning("%s: all %d steps are done already", name, phase.steps)
            phase.finish()


def train(config: DictConfig, run: PretrainingRun, phase: Phase) -> None:
    """The training loop of a phase."""
    start = steps_before(config, phase.name, batches=True)
    span = (start + phase.step * phase.accumulate, start + phase.steps * phase.accumulate)
    on_gpu = run.accelerator.device.type == "cuda"
    with starting_workers() if config.workers else nullcontext():
        batches = iter(loader(run.data, *span, workers=config.workers, pin_memory=on_gpu))
    reports = build_reports(config, run, phase)
    started = time.monotonic() - phase.progress["wall_time"]
    try:
        while phase.step < phase.steps:
            metrics = phase.take_step(batches)
            phase.progress["wall_time"] = time.monotonic() - started
            reports.tick()
            if due(phase, config.log_every):
                reports.log(metrics)
            if due(phase, config.validation.every):
                reports.validate()
            if due(phase, config.video.every):
                reports.sample()
            if due(phase, config.checkpoint_every) or run.stop.requested:
                save(run, phase)
                run.stop.leave()
    finally:
        reports.close()


def due(phase: Phase, every: int) -> bool:
    """Whether an action with an interval of `every` steps (0: never) is due, as it also is at the end of a phase."""
    return every > 0 and (phase.step % every == 0 or phase.step == phase.steps)


def save(run: PretrainingRun, phase: Phase) -> None:
    """Write a checkpoint, and the weights."""
    if run.accelerator.is_main_process:
        phase.save()
        with phase.evaluating():
            run.model.save_pretrained(run.output)


def build_phase(config: DictConfig, run: PretrainingRun, name: str) -> Phase:
    """Build a phase, in the state of its last checkpoint."""
    options = {key: value for key, value in config[name].items() if key not in NOT_OF_A_PHASE}
    return Phase(name, run.model, run.accelerator, run.output, seed=config.seed, **options)


def build_reports(config: DictConfig, run: PretrainingRun, phase: Phase) -> Reports:
    return Reports(
        run.output,
        phase,
        run.model,
        run.accelerator,
        run.held_out,
        batches=config.validation.batches,
        segments=config.video.segments,
        first=steps_before(config, phase.name),
    )


def steps_before(config: DictConfig, name: str, *, batches: bool = False) -> int:
    """Number of steps, or of batches, in the phases before this one."""
    earlier = [config[phase] for phase in PHASES[: PHASES.index(name)]]
    return sum(phase.steps * (phase.accumulate if batches else 1) for phase in earlier)


def check(config: DictConfig) -> None:
    """Check settings before anything is built.

    Raises:
        UserError: A setting is out of range.
    """
    weight_by_folder(config.data)
    require_types(config, TYPES)
    device = own_device(config)
    length = config.worldmodel.segment_length
    for key, segments in (
        ("batch_size", config.batch_size),
        ("validation.batch_size", config.validation.batch_size),
        ("video.segments", config.video.segments),
    ):
        numbers = segments * length * 3 * config.worldmodel.tokenizer.resolution**2
        require_memory(f"{key}={segments}", numbers * FLOAT, device)
    if config.worldmodel.pretrained is None:
        warmup = OmegaConf.select(config, f"worldmodel.{WARMUP}", default=0)
        if config.tokenizer.steps <= warmup:
            raise UserError(
                f"tokenizer.steps ({config.tokenizer.steps}) must be more than worldmodel.{WARMUP} ({warmup}), or the "
                "codebooks are never trained: raise the first, lower the second, or set worldmodel.pretrained=FOLDER"
            )
