"""Episodes as records, and folders of them on disk.

A *record episode* of L steps has batch [L + 1]. Row t holds the observation at t (`pixels` uint8 [3, R, R],
`state` float32 [S]; at least one) and what the action taken there led to: `action` float32 [A], `reward`
float32 [1] earned by it, `success`, `terminated` and `truncated` bool [1] after it. The last row is the final
observation: the rest is zero. On disk it is one safetensors file, whose metadata may say what it is of
(`about`). The folders of iVideoGPT's authors (.npz,
see `mbrl.data.published`) read as well.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec

from mbrl.data.published import read_published
from mbrl.data.reading import Malformed, reading
from mbrl.errors import UserError
from mbrl.run_folder.files import write_atomically
from mbrl.run_folder.plain_json import parse_json
from mbrl.run_folder.schema import TensorType
from mbrl.run_folder.tensors import tensor_chunks

BASE_OBSERVATIONS = ("pixels", "state")  # an episode has one of these at least
EMBEDDING = "embedding"  # what a world model makes of the newest frames, float32 [D]; in the replay, never in files
INITIAL = "initial"  # the first frame of a step's episode, uint8 [3, R, R]; made where it is wanted, never stored
OBSERVATIONS = (*BASE_OBSERVATIONS, "task", EMBEDDING)  # the task, a one-hot, is never all that is seen
FLAGS = ("success", "terminated", "truncated")
LATENT = "latent"  # latent state that a recurrent actor inferred from the observation; in the replay, never in files
SNAPSHOT = "snapshot"  # exact state of the environment, float64 [n]; in the replay if asked for, never in files
SUFFIX = ".safetensors"
METADATA_KEY = "about"  # the only metadata entry: safetensors writes several in any order, and bytes must be the same

_log = logging.getLogger(__name__)


def to_records(rollout: TensorDictBase) -> TensorDict:
    """The record episode [L + 1] of a whole episode's rollout [L] with "next" entries."""
    after = rollout["next"]
    length = rollout.shape[0]
    records = TensorDict(batch_size=[length + 1], device=rollout.device)
    keys = set(rollout.keys())
    for key in (*OBSERVATIONS, SNAPSHOT):
        if key in keys:
            records[key] = torch.cat([rollout[key], after[key][-1:]])
    if LATENT in after.keys():  # of the observation at t, handed on to t + 1; the final one was not looked at
        records[LATENT] = torch.cat([after[LATENT], torch.zeros_like(after[LATENT][-1:])])
    for key in ("action", "reward", *FLAGS):
        value = rollout["action"] if key == "action" else after[key]
        records[key] = torch.cat([value, torch.zeros_like(value[-1:])])
    return records


def with_initial(steps: TensorDict) -> TensorDict:
    """Steps [L] of one episode from its first on, with that step's frame as `initial` [L, 3, R, R] beside each."""
    return steps.copy().set(INITIAL, steps["pixels"][:1].expand_as(steps["pixels"]))


def initial_frames(newest: Tensor, carried: Tensor, is_init: Tensor) -> Tensor:
    """The first frame uint8 [B, 3, R, R] of each row's episode, for an actor that carries it from step to step.

    Args:
        newest: frames [B, 3, R, R] of now.
        carried: what was carried [B, 3, R, R]; black where the actor has not seen the episode, as after random actions.
            The newest frame then stands for the first.
        is_init: [B, 1], whether this is the first step of the episode.
    """
    known = carried.flatten(1).bool().any(1, keepdim=True) & ~is_init
    return torch.where(known[..., None, None], carried, newest)


def record_fields(observation_spec: Composite, action_spec: TensorSpec) -> dict[str, TensorType]:
    """Type and shape of each entry of one record, for an environment's specs without batch."""
    seen = {key: observation_spec[key] for key in (*OBSERVATIONS, SNAPSHOT) if key in observation_spec.keys()}
    flag, number = TensorType(torch.bool, (1,)), TensorType(torch.float32, (1,))
    return {
        **{key: TensorType(spec.dtype, tuple(spec.shape)) for key, spec in seen.items()},
        "action": TensorType(torch.float32, tuple(action_spec.shape)),
        "reward": number,
        **dict.fromkeys(FLAGS, flag),
    }


def check_records(records: TensorDictBase, name: str) -> None:
    """Check that records are a record episode.

    Args:
        records: the records, [R].
        name: what they are called in the error message, such as their file.

    Raises:
        UserError: a key, a shape or a type is wrong, or a value is NaN.
    """
    keys = list(records.keys())
    shapes = dict.fromkeys(FLAGS, ((1,), torch.bool)) | {"reward": ((1,), torch.float32)}
    missing = [key for key in (*shapes, "action") if key not in keys]
    if missing or not any(key in keys for key in BASE_OBSERVATIONS):
        raise UserError(f"{name}: not an episode, it lacks {', '.join(missing) or 'pixels or state'}")
    if records.ndim != 1 or len(records) < 2:
        raise UserError(f"{name}: an episode has one axis of 2 rows or more, not {list(records.shape)}")
    for key in keys:
        value = records[key]
        shape, dtype = shapes.get(key, (None, torch.uint8 if key == "pixels" else torch.float32))
        given = tuple(value.shape[1:])
        square = key != "pixels" or (len(given) == 3 and given[0] == 3 and given[1] == given[2])
        flat = key not in ("action", "state") or len(given) == 1
        if value.dtype != dtype or (shape is not None and given != shape) or not square or not flat:
            found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            wanted = "" if square else ": give single square frames [L + 1, 3, R, R], which env.frame_stack stacks"
            raise UserError(f"{name}: {key} cannot be {found} in an episode{wanted}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{name}: {key} holds NaN or infinite values")


def write_episode(path: Path, records: TensorDictBase, about: Mapping[str, Any] | None = None) -> None:
    """Write one record episode and what is said `about` it, whole or not at all: no file of this name is torn."""
    check_records(records, str(path))
    write_entries(path, dict(records.items()), about)


def write_entries(path: Path, entries: Mapping[str, torch.Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file of these entries, whole or not at all."""
    write_atomically(path, tensor_chunks(entries, {METADATA_KEY: json.dumps(about)} if about else None))


def episode_metadata(task: str, action_repeat: int, view: str | None = None) -> dict[str, Any]:
    """Metadata of an episode: its task without "-v3", the env steps of one of its steps, and how its pictures
    were taken (see `view_name`), where there are any.
    """
    about = {"task": task.removesuffix("-v3"), "action_repeat": action_repeat}
    return about if view is None else {**about, "view": view}


def view_name(camera: str, mirrored: bool) -> str:
    """Such as "corner2 mirrored"."""
    return f"{camera}{' mirrored' if mirrored else ''}"


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata in an episode's file; empty in older files and published ones.

    Raises:
        UserError: the file is torn, or says it in another way.
    """
    if path.suffix != SUFFIX:
        return {}
    with reading(path):
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
        try:
            written = parse_json(text)
        except ValueError as error:
            raise Malformed(f"what it says about itself is no JSON ({error})") from error
        if not isinstance(written, dict):
            raise Malformed(f"what it says about itself is {type(written).__name__}, not an object")
        return written


def read_episode(path: Path) -> TensorDict:
    """Read one record episode.

    Raises:
        UserError: the file is torn, has a wrong shape, or holds NaN.
        MemoryError: there is not enough memory to read it.
    """
    with reading(path):
        entries = load_file(path)
        if any(value.ndim == 0 for value in entries.values()):
            raise Malformed("one of its entries has no rows, so it is no episode")
    lengths = {value.shape[:1] for value in entries.values()}
    if len(lengths) != 1:
        raise UserError(f"{path}: its entries have different lengths, so it is no episode")
    records = TensorDict(entries, batch_size=list(lengths.pop()))
    check_records(records, str(path))
    return records


def episode_paths(folder: Path) -> list[Path]:
    """The files of a folder's episodes, in the order of their names.

    Raises:
        FileNotFoundError: there is no such folder, or no episode in it.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("[!.]*") if path.suffix in (SUFFIX, ".npz") and not path.is_dir())
    if not paths:
        state = "holds no episodes (.safetensors or .npz)" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} {state}: `mbrl demos` records some")
    return paths


def read_episodes(folder: Path, *, strict: bool = True) -> list[TensorDictBase]:
    """Read a folder's episodes, own files and published .npz, in the order of their names.

    Args:
        folder: the folder.
        strict: whether the first bad file raises. Otherwise bad files are left out and counted in a warning.

    Raises:
        FileNotFoundError: the folder does not exist or holds no episode.
        UserError: a file is torn, has a wrong shape, or holds NaN, and `strict` is true.
    """
    readers = {SUFFIX: read_episode, ".npz": read_published}
    paths = episode_paths(folder)
    episodes: list[TensorDictBase] = []
    bad: list[UserError] = []
    for path in paths:
        try:
            episodes.append(readers[path.suffix](path))
        except UserError as error:
            if strict:
                raise
            bad.append(error)
    if bad:
        _log.warning("left out %d of %d episodes in %s, the first: %s", len(bad), len(paths), folder, bad[0])
    return episodes
