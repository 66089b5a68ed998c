"""Demonstrations of a folder, read and checked for a run's replay."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from tensordict import TensorDictBase
from torchrl.data import Composite, TensorSpec

from mbrl.data.episodes import episode_metadata, episode_paths, read_episodes, read_metadata
from mbrl.errors import UserError
from mbrl.replay.episode_buffer import EpisodeBuffer

_log = logging.getLogger(__name__)


def read_demonstrations(
    folder: Path, *, task: str, action_repeat: int, view: str | None = None
) -> list[TensorDictBase]:
    """Read a folder's demonstrations of a task, record episodes [L + 1].

    Args:
        view: how images must have been taken, see `mbrl.data.episodes.view_name`; None: they do not matter.

    Files that do not say their task, such as published ones, are taken for this task's, with a warning.

    Raises:
        UserError: a file is torn, has other entries than the others, or says that it is of another task, of steps of
            another length or from another view.
        FileNotFoundError: there is no such folder, or no episode in it.
    """
    episodes, paths, silent = read_episodes(folder), episode_paths(folder), 0
    _require_alike(episodes, paths)
    for path in paths:
        about = read_metadata(path)
        silent += not about
        for name, value in episode_metadata(task, action_repeat, view).items():
            if about.get(name, value) != value:
                recorded = f"`mbrl demos {task} --camera {value} --output FOLDER`".replace(" mirrored", " --mirrored")
                raise UserError(
                    f"replay.demos: {path} is of {name} {about[name]}, and the environment's {name} is {value}: "
                    f"give demonstrations of the same{f', as {recorded} records them' if name == 'view' else ''}"
                )
    if silent:
        _log.warning("%d demonstrations in %s do not say their task: they are taken for %s", silent, folder, task)
    return episodes


def _require_alike(episodes: Sequence[TensorDictBase], paths: Sequence[Path]) -> None:
    """UserError where an episode has an entry that another lacks, or of another shape."""
    first = {str(key): list(value.shape[1:]) for key, value in episodes[0].items()}
    for episode, path in zip(episodes, paths, strict=True):
        fields = {str(key): list(value.shape[1:]) for key, value in episode.items()}
        for key in sorted(first.keys() | fields.keys()):
            if fields.get(key) != first.get(key):
                shapes = [one.get(key, "absent") for one in (first, fields)]
                raise UserError(
                    f"replay.demos: {key} is {shapes[0]} in {paths[0]} and {shapes[1]} in {path}: "
                    "give demonstrations of one environment"
                )


def check_compatible(
    demos: EpisodeBuffer, observation_spec: Composite, action_spec: TensorSpec, needed: Iterable[str], length: int = 0
) -> None:
    """Refuse demonstrations that cannot stand beside what the environment gives.

    Args:
        needed: observations, `pixels` or `state`, that the agent learns from. length: records of the segments that its
            world model learns from; shorter demonstrations, which it never sees, are warned of.

    Raises:
        UserError: one is missing, an entry has another shape, or every demonstration is too short.
    """
    records = demos.records
    for key in needed:
        if key not in records.keys():
            raise UserError(f"replay.demos hold no {key}, which this agent learns from: record them with `mbrl demos`")
    expected = {key: observation_spec[key].shape for key in ("pixels", "state") if key in observation_spec.keys()}
    for key, shape in (expected | {"action": action_spec.shape}).items():
        if key in records.keys() and records[key].shape[1:] != shape:
            raise UserError(
                f"replay.demos: their {key} is {list(records[key].shape[1:])}, the environment's {list(shape)}: "
                "give demonstrations of the same environment"
            )
    lengths = [episode.length for episode in demos.episodes]
    short = sum(size < length for size in lengths)
    if short == len(lengths):
        raise UserError(
            f"replay.demos: none has the {length} frames of a segment (agent.segment_length), and the longest has "
            f"{max(lengths)}: give longer ones"
        )
    if short:
        _log.warning("the world model will see no demonstration of less than %d frames: %d are shorter", length, short)
