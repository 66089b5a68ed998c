"""mbrl pretrain: trains a world model on folders of episodes, one phase after the other.

Under `torchrun` (or `accelerate launch`) several processes share each batch. Their gradients are those of one process
with the joint batch, except for normalisation over a batch: the weights of moving pixels, and the statistics of
standardised latents, are those of the share of each process.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from omegaconf import DictConfig, ListConfig, OmegaConf
from torchrl.data import Bounded, Composite, Unbounded

from mbrl.checks.sizes import FLOAT
from mbrl.checks.typed import require_types
from mbrl.data.augmentation import Augmentation
from mbrl.data.mixture import Mixture, loader
from mbrl.device import pick_device
from mbrl.errors import UserError
from mbrl.malloc import keep_freed_memory
from mbrl.pretraining.phase import Phase
from mbrl.pretraining.reports import GIB, Reports, peak_memory
from mbrl.pretraining.settings import TYPES
from mbrl.processes.stopping import StopRequest
from mbrl.processes.tracker import start_quietly
from mbrl.processes.workers import end_with_parent, naming_dead_loaders, starting_workers
from mbrl.run_folder.config import claim_run_folder
from mbrl.run_folder.files import remove_leftovers, require_regular_files
from mbrl.run_folder.lock import FolderLock
from mbrl.settings.memory import require_memory, require_memory_of
from mbrl.targets import make
from worldmodel.base import WorldModel

PHASES = ("tokenizer", "transformer")
WARMUP = "tokenizer.codebooks.moving_average.warmup"
# Settings that may differ between a run and its continuation.
IGNORED_ON_RESUME = ("output", "threads", "workers", "device", "log_every", "checkpoint_every", "video")

_log = logging.getLogger(__name__)


@dataclass
class PretrainingRun:
    """The objects of a run.

    Attributes:
        output: The output folder.
        accelerator: Device and processes.
        data: Training data.
        held_out: Data for validation and videos.
        model: A WorldModel that is Pretrainable.
        lock: Lock of the output folder, on the main process.
        stop: Whether the run is to stop.
    """

    output: Path
    accelerator: Accelerator
    data: Mixture
    held_out: Mixture
    model: Any
    lock: FolderLock | None
    stop: StopRequest = field(default_factory=StopRequest)


def run(config: DictConfig) -> Path | None:
    """Train the phases of one world model. Continues from the last checkpoint in `output`, if there is one.

    Args:
        config: Settings, see configs/pretrain.yaml.

    Returns:
        The output folder, on the main process: weights (tokenizer/, transformer/), config.yaml, metrics.jsonl,
        TensorBoard events, checkpoints, videos. None on the others.

    Raises:
        UserError: The settings or the data do not fit together.
    """
    check(config)
    start_quietly()
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if "LOCAL_RANK" in os.environ:
        end_with_parent()  # the launcher, such as torchrun
    parts = build(config)
    for name in PHASES:
        if config[name].steps > 0:
            phase = build_phase(config, parts, name)
            if phase.step < phase.steps:
                with parts.stop.on_sigterm(), naming_dead_loaders():
                    train(config, parts, phase)
            elif parts.accelerator.is_main_process:
                _log.warning("%s: all %d steps are done already", name, phase.steps)
            phase.finish()
    if parts.accelerator.is_main_process:
        parts.model.save_pretrained(parts.output)
        _log.info("peak memory %.2f GiB", peak_memory(parts.accelerator.device) / GIB)
    parts.accelerator.end_training()
    if parts.lock is not None:
        parts.lock.release()
    return parts.output if parts.accelerator.is_main_process else None


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


def build(config: DictConfig) -> PretrainingRun:
    """Build a run. Its folder is claimed last, so that a wrong setting does not claim it."""
    device = pick_device(config.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Accelerate takes the current one, in a single process.
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the model sets its own
        # A batch may not train all parameters: a codebook during warm-up, a reward head without rewards.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if config.batch_size % accelerator.num_processes:
        raise UserError(f"batch_size ({config.batch_size}) must divide among {accelerator.num_processes} processes")
    with accelerator.main_process_first():  # it decodes videos, if there are any
        data, held_out = build_data(config, accelerator)
    model = build_model(config, data).to(accelerator.device)
    output, lock = Path(config.output), None
    if accelerator.is_main_process:
        require_regular_files(output)
        lock = FolderLock(output)
        remove_leftovers(output)
        claim_run_folder(output, config, ignored=IGNORED_ON_RESUME, setting="output")
    accelerator.wait_for_everyone()
    return PretrainingRun(output, accelerator, data, held_out, model, lock)


def build_data(config: DictConfig, accelerator: Accelerator) -> tuple[Mixture, Mixture]:
    """Training data, and data for validation and videos, which are held out unless there is no validation."""
    validated = config.validation.every > 0
    mixture = partial(
        Mixture,
        weight_by_folder(config.data),
        segment_length=config.worldmodel.segment_length,
        resolution=config.worldmodel.tokenizer.resolution,
        seed=config.seed,
        initial=OmegaConf.select(config, "worldmodel.conditioning.initial", default=False),
        validation_share=config.validation.share if validated else 0.0,
        strict=config.strict,
    )
    data = mixture(
        batch_size=config.batch_size // accelerator.num_processes,
        augment=None if config.augment is None else make(config.augment, Augmentation, place="augment"),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    held_out = mixture(batch_size=config.validation.batch_size, split="validation" if validated else "train")
    if accelerator.is_main_process and "reward" not in data.keys:
        _log.warning(
            "the data hold no rewards: a reward head stays untrained "
            "(worldmodel.transformer.reward_heads=0 leaves it out)"
        )
    return data, held_out


def weight_by_folder(data: Any) -> dict[str, float]:
    """The setting `data`: {FOLDER: weight}, or a list of {folder: FOLDER, weight: weight}.

    Raises:
        UserError: it is neither, or names a folder twice.
    """
    if not data or not isinstance(data, DictConfig | ListConfig):
        raise UserError("data is missing: 'data={FOLDER: 1.0}', or several folders, each with its weight")
    if isinstance(data, DictConfig):
        pairs = [(str(folder), weight) for folder, weight in data.items()]
    else:
        if not all(isinstance(item, DictConfig) and set(item) == {"folder", "weight"} for item in data):
            raise UserError(f"data is {data}: a list holds {{folder: FOLDER, weight: 1.0}} alone")
        pairs = [(str(item.folder), item.weight) for item in data]
    for folder, weight in pairs:
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise UserError(f"the weight of {folder} is {weight!r}: it must be a number")
    if len(dict(pairs)) < len(pairs):
        raise UserError("data names a folder twice: give each folder once")
    return dict(pairs)


def build_model(config: DictConfig, data: Mixture) -> Any:
    """The world model for the specs of the data, with random weights from the seed, or `worldmodel.pretrained`."""
    if data.action_dim is None and OmegaConf.select(config, "worldmodel.conditioning.actions", default=False):
        raise UserError(
            "not all of the data have actions: set worldmodel.conditioning.actions=false for a model that reads none"
        )
    observations = Composite(pixels=Bounded(0, 255, (3, data.resolution, data.resolution), dtype=torch.uint8))
    if "state" in data.keys:
        observations["state"] = Unbounded((data[0]["state"].shape[-1],))
    specs = {"observation_spec": observations, "action_spec": Bounded(-1, 1, (data.action_dim or 1,))}
    make_model = partial(make, config.worldmodel, WorldModel, place="worldmodel", **specs)
    require_memory_of(make_model, "worldmodel", pick_device(config.device))
    torch.manual_seed(config.seed)
    return make_model()


def build_phase(config: DictConfig, run: PretrainingRun, name: str) -> Phase:
    """Build a phase, in the state of its last checkpoint."""
    options = {key: value for key, value in config[name].items() if key not in ("learning_rate", "weight_decay")}
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
    device = pick_device(config.device)
    segment = config.worldmodel.segment_length * 3 * config.worldmodel.tokenizer.resolution**2  # numbers
    for key, segments in (
        ("batch_size", config.batch_size),
        ("validation.batch_size", config.validation.batch_size),
        ("video.segments", config.video.segments),
    ):
        require_memory(f"{key}={segments}", segments * segment * FLOAT, device)
    if config.worldmodel.pretrained is None:
        warmup = OmegaConf.select(config, f"worldmodel.{WARMUP}", default=0)
        if config.tokenizer.steps <= warmup:
            raise UserError(
                f"tokenizer.steps ({config.tokenizer.steps}) must be more than worldmodel.{WARMUP} ({warmup}), or the "
                "codebooks are never trained: raise the first, lower the second, or set worldmodel.pretrained=FOLDER"
            )
