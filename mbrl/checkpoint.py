"""The whole run on disk: weights, optimisers, replay, random states and counters, in files without pickled objects."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchrl.checkpoint import Checkpoint, CheckpointError, CheckpointRotation, GlobalRNGState

from mbrl.agent import Agent
from mbrl.protocols import flat
from mbrl.replay import Replay
from policies.base import Policy
from worldmodel.base import WorldModel

CHECKPOINTS = "checkpoints"  # the folder of that name in a run's folder
METRICS = "metrics.jsonl"  # there from a run's first moment on
# what may differ between a run and its continuation
CONTINUES = ("run_dir", "threads", "eval.every", "video", "wandb", "collect.backend")
SPARE = 64 * 2**20  # bytes beside the tensors: file system blocks, JSON, logs


class Checkpoints:
    """Atomic checkpoints of named parts in one folder, the last two kept (TorchRL's Checkpoint and CheckpointRotation).

    Args:
        parts: what has a `state_dict`, or is a dictionary of JSON's types.
        device: where tensors are put when they are read; None: where they were.
    """

    def __init__(self, directory: Path, parts: dict[str, Any], device: torch.device | None = None) -> None:
        self._checkpoint, self._device = Checkpoint(**parts), device
        self._rotation = CheckpointRotation(directory, keep_last=2)
        for leftover in directory.glob(".*.stage-*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)  # another process may be removing it too

    def save(self, step: int) -> None:
        """Write a checkpoint and let go of the last but one.

        Raises:
            OSError: ENOSPC where the disk has no room for it; the earlier ones stay.
        """
        self._require_room()
        self._rotation.save(self._checkpoint, step=step)

    def _require_room(self) -> None:
        # the files are written through memory maps, where a full disk is a SIGBUS and not an error
        parts = [part for part in self._checkpoint.components.values() if hasattr(part, "state_dict")]
        leaves = [leaf for part in parts for leaf in tree_leaves(part.state_dict())]
        needed = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        directory = self._rotation.directory
        directory.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(directory).free < needed + SPARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    def load_latest(self) -> bool:
        """Restore the newest checkpoint; False where there is none.

        Raises:
            ValueError: it is torn or belongs to other networks.
        """
        latest = self._rotation.latest()
        if latest is None:
            return False
        _load(self._checkpoint, latest, map_location=self._device)
        return True


class RunCheckpoint(Checkpoints):
    """Checkpoints of a whole run.

    The replay's pixels are memory maps in the run folder already; a checkpoint holds where the episodes lie in them.
    """

    def __init__(self, run_dir: Path, *, agent: Agent, replay: Replay, progress: dict[str, Any]) -> None:
        parts: dict[str, Any] = {"policy": agent.policy, "agent": agent, "replay": replay, "progress": progress}
        if agent.world_model is not None:
            parts["world_model"] = agent.world_model
        super().__init__(run_dir / CHECKPOINTS, {"rng": GlobalRNGState(), **parts})


def load_policy(run: Path, policy: Policy) -> None:
    """Put the weights of a run's newest checkpoint into `policy`.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
    """
    _load(Checkpoint(policy=policy), _newest(run), map_location=policy.device)


def load_world_model(run: Path, world_model: WorldModel) -> None:
    """Put the weights of a run's newest checkpoint into `world_model`; its optimisers stay as they are.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
    """
    device = next(world_model.parameters()).device
    _load(Checkpoint(world_model=world_model), _newest(run), map_location=device)


def _newest(run: Path) -> Path:
    latest = CheckpointRotation(run / CHECKPOINTS, keep_last=2).latest()
    if latest is None:
        raise FileNotFoundError(f"{run} holds no checkpoint: train it first (mbrl train run_dir={run})")
    return latest


def _load(checkpoint: Checkpoint, path: Path, **options: Any) -> None:
    try:
        checkpoint.load(path, **options)
    except (CheckpointError, OSError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the checkpoint {path} cannot be read ({reason}); remove that folder to go on from the one before it"
        ) from error


def load_config(run: Path) -> DictConfig:
    """The resolved configuration of a run folder.

    Raises:
        FileNotFoundError: the folder is no run folder.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no config.yaml")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def claim_run_folder(
    run_dir: Path, config: DictConfig, *, continues: Collection[str] = CONTINUES, setting: str = "run_dir"
) -> None:
    """Write the resolved configuration into the folder, or check that the folder is this configuration's.

    Args:
        continues: settings that may differ. setting: the one that names the folder.

    Raises:
        ValueError: the folder belongs to another configuration; names the first differences.
    """
    require_own_folder(run_dir, config, continues=continues, setting=setting)
    path = run_dir / "config.yaml"
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    OmegaConf.save(config, temporary, resolve=True)
    temporary.replace(path)


def require_own_folder(
    run_dir: Path, config: DictConfig, *, continues: Collection[str] = CONTINUES, setting: str = "run_dir"
) -> None:
    """ValueError where the folder belongs to another configuration; arguments as in `claim_run_folder`.

    A folder that was claimed for a run which has never begun belongs to nobody.
    """
    path = run_dir / "config.yaml"
    if path.exists() and ((run_dir / METRICS).exists() or (run_dir / CHECKPOINTS).exists()):
        differences = _differences(OmegaConf.load(path), config, continues)
        if differences:
            more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise ValueError(
                f"{run_dir} belongs to another config ({'; '.join(differences[:3])}{more}): "
                f"choose another folder with {setting}=... or remove that one"
            )


def _differences(old: Any, new: Any, continues: Collection[str]) -> list[str]:
    flat_old, flat_new = flat(OmegaConf.to_container(old)), flat(OmegaConf.to_container(new, resolve=True))
    keys = sorted(flat_old.keys() | flat_new.keys())
    return [
        f"{key}: {flat_old.get(key, 'absent')} there, {flat_new.get(key, 'absent')} here"
        for key in keys
        if not {key, key.split(".")[0]} & set(continues) and flat_old.get(key, ...) != flat_new.get(key, ...)
    ]
