"""The types of the settings of `mbrl pretrain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from annotated_types import Interval

from mbrl.checks.train import Seed, Threads
from mbrl.data.augmentation import Augmentation
from policies.ranges import Count, Norm, PositiveCount, Scale, Share, ShareBelowOne, WeightDecay
from worldmodel.base import WorldModel

OpenShare = Annotated[float, Interval(gt=0, lt=1)]
Processes = Annotated[int, Interval(ge=0, le=1024)]


class Validation(TypedDict):
    """The settings under `validation`."""

    every: Count
    batches: PositiveCount
    batch_size: PositiveCount
    share: OpenShare


class Video(TypedDict):
    """The settings under `video`."""

    every: Count
    segments: PositiveCount


class PhaseSettings(TypedDict):
    """The settings of a phase, under its name."""

    steps: Count
    learning_rate: Share  # 0 trains nothing
    warmup: Count
    final_learning_rate_share: Share
    weight_decay: WeightDecay
    clip_norm: Norm
    accumulate: PositiveCount
    ema_decay: ShareBelowOne


# In the order in which they are checked: the model refers to the phases.
TYPES: dict[str, Any] = {
    "tokenizer": PhaseSettings,
    "transformer": PhaseSettings,
    "worldmodel": WorldModel,
    "data": Mapping[str, Scale] | list,  # see build.weight_by_folder
    "output": str,
    "seed": Seed,
    "threads": Threads | None,
    "device": str,
    "workers": Processes,
    "batch_size": PositiveCount,
    "log_every": PositiveCount,
    "checkpoint_every": PositiveCount,
    "strict": bool,
    "augment": Augmentation | None,
    "validation": Validation,
    "video": Video,
}
