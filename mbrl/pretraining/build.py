"""Builds what `mbrl pretrain` trains: the models and the batches of each phase."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from omegaconf import DictConfig, ListConfig, OmegaConf
from torchrl.data import Bounded, Composite, Unbounded

from mbrl.data.augmentation import Augmentation
from mbrl.data.mixture import Mixture
from mbrl.device import find_device, pick_device
from mbrl.errors import UserError
from mbrl.processes.stopping import StopRequest
from mbrl.run_folder.config import claim_run_folder
from mbrl.run_folder.files import remove_leftovers, require_regular_files
from mbrl.run_folder.lock import FolderLock
from mbrl.settings.memory import require_memory_of
from mbrl.targets import make
from worldmodel.base import WorldModel

# Settings that may differ between a run and its continuation; only earlier versions have those of `reward_network`.
IGNORED_ON_RESUME = (
    "output", "threads", "workers", "device", "log_every", "checkpoint_every", "video", "reward_network",
)  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass
class PretrainingRun:
    """The objects of a run.

    Attributes:
        output: The output folder.
        accelerator: Device and processes.
        model: A WorldModel and Pretrainable.
        data: Training data.
        held_out: Data for validation and videos.
        lock: Lock of the output folder, on the main process.
        stop: Whether the run is to stop.
    """

    output: Path
    accelerator: Accelerator
    model: Any
    data: Mixture
    held_out: Mixture
    lock: FolderLock | None
    stop: StopRequest = field(default_factory=StopRequest)


def own_device(config: DictConfig) -> torch.device:
    """The device of this process. Of several that torchrun started on a machine, each has a GPU of its own.

    Raises:
        UserError: as `pick_device`.
    """
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or find_device(config.device).type != "cuda":
        return pick_device(config.device)
    return pick_device(f"cuda:{int(rank) % torch.cuda.device_count()}")  # the one that Accelerate takes


def build(config: DictConfig) -> PretrainingRun:
    """Build a run. Its folder is claimed last, so that a wrong setting does not claim it."""
    device = own_device(config)  # Accelerate takes the current one, in a single process.
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the model sets its own
        # A batch may not train all parameters: a codebook during warm-up, a reward head without rewards.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    processes = accelerator.num_processes
    if config.batch_size % processes:
        raise UserError(f"batch_size ({config.batch_size}) must divide among {processes} processes")
    data, held_out = build_data(config, accelerator)
    if accelerator.is_main_process and "reward" not in data.keys:
        _log.warning(
            "the data hold no rewards: a reward head stays untrained "
            "(worldmodel.transformer.reward_heads=0 leaves it out)"
        )
    model = build_model(config, data).to(accelerator.device)
    output, lock = Path(config.output), None
    if accelerator.is_main_process:
        require_regular_files(output)
        lock = FolderLock(output)
        remove_leftovers(output)
        claim_run_folder(output, config, ignored=IGNORED_ON_RESUME, setting="output")
    accelerator.wait_for_everyone()
    return PretrainingRun(output, accelerator, model, data, held_out, lock)


def build_data(config: DictConfig, accelerator: Accelerator) -> tuple[Mixture, Mixture]:
    """Training segments, and segments for validation and videos; these are held out unless there is no validation."""
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
    with accelerator.main_process_first():  # it decodes videos, if there are any
        data = mixture(
            batch_size=config.batch_size // accelerator.num_processes,
            augment=None if config.augment is None else make(config.augment, Augmentation, place="augment"),
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
    return data, mixture(batch_size=config.validation.batch_size, split="validation" if validated else "train")


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
    require_memory_of(make_model, "worldmodel", own_device(config))
    torch.manual_seed(config.seed)
    return make_model()
