"""Recorded episodes of a folder that a world model was not trained on."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf
from tensordict import TensorDict

from mbrl.data.mixture import split_place
from mbrl.data.segments import EpisodeData
from mbrl.errors import UserError
from mbrl.run_folder.config import read_config

MAX_EPISODES = 400  # kept in memory, 12 KB for each frame of 64 px


def load_episodes(folder: Path, resolution: int, held_out: float = 1.0) -> list[TensorDict]:
    """Load the episodes of a folder as records. From more than MAX_EPISODES, evenly spaced ones are loaded.

    Args:
        folder: folder of episodes, in any layout that EpisodeData reads.
        resolution: R, the side that frames are resized to.
        held_out: share of the episodes, those that `Mixture` has in its validation split; 1 for all.

    Raises:
        UserError: Frames are smaller than R, or none of the episodes is held out.
    """
    data = EpisodeData(folder, resolution=resolution)
    if data.smallest < resolution:
        side = f"{data.smallest}x{data.smallest}"
        raise UserError(f"{folder} has frames of {side}, and the model is made for {resolution}x{resolution}")
    numbers = [number for number, name in enumerate(data.names) if split_place(name) < held_out]
    if not numbers:
        raise UserError(f"the model was trained on all {len(data)} episodes of {folder}: give other episodes")
    chosen = numbers[:: -(-len(numbers) // MAX_EPISODES)]
    wholes = (data.segment(number, 0, data.lengths[number]) for number in chosen)
    return [whole.exclude("next").update(whole.get("next", TensorDict())) for whole in wholes]


def held_out_share(model: Path, folder: Path) -> float:
    """Share of a folder's episodes that a model was not trained on by `mbrl pretrain`; 1 if it was trained on none.

    Args:
        model: folder of the model. Relative folders in its configuration are looked for in the current one.
        folder: folder of episodes.
    """
    from mbrl.pretraining.build import weight_by_folder

    written = model / "config.yaml"
    if not written.is_file():
        return 1.0
    config = read_config(written)
    if "validation" not in config or "data" not in config:
        return 1.0  # a run's
    if folder.resolve() not in {Path(name).resolve() for name in weight_by_folder(config.data)}:
        return 1.0
    return float(OmegaConf.select(config, "validation.share")) if config.validation.every else 0.0
