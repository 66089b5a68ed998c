"""Checkpoints: the state of a run in a few files, written whole or not at all and verified before anything is loaded.

    checkpoints/checkpoint-000000002000/    the number is the step, of which env steps are one kind
        manifest.json                       format, step, and the size and SHA-256 of every other file
        values.json                         counters, optimiser settings and all else that is no tensor, by part
        PART.safetensors                    the tensors of a part: policy, world_model, optimizers, replay, ...

Nothing in them is code: tensors are safetensors, all else is JSON, and every entry is held against the schema of the
part that it is loaded into.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mbrl.errors import UserError
from mbrl.run_folder.files import flush_folder, name_in_errors, remove_folder, sha256_of, write_new
from mbrl.run_folder.parts import Part
from mbrl.run_folder.paths import checkpoint_folders, checkpoint_name, checkpoint_paths
from mbrl.run_folder.plain_json import parse_json
from mbrl.run_folder.schema import Schema, SchemaError, require
from mbrl.run_folder.tensors import read_tensors, tensor_chunks

FORMAT = "mbrl checkpoint"
OLD_FORMAT = "torchrl.checkpoint"  # folders of memory maps
VERSION = 2
KEPT_CHECKPOINTS = 2  # checkpoints
MANIFEST, VALUES, TENSORS = "manifest.json", "values.json", ".safetensors"
MAX_JSON_BYTES = 64 * 2**20  # bytes

_log = logging.getLogger(__name__)


class DamagedFile(UserError):
    """A file of a run is torn, altered or missing."""


class Unfit(UserError):
    """A checkpoint was written for other parts."""


class Checkpoints:
    """The checkpoints in one folder, of which the last two are kept.

    Args:
        directory: made at the first `save`.
        parts: by name, in the order in which they are loaded. A part that reads further files comes first, so that
            nothing has been changed where those are damaged.
        unit: what a step is, for messages.
    """

    def __init__(self, directory: Path, parts: Mapping[str, Part], unit: str = "env steps") -> None:
        self._directory, self._parts, self._unit = directory, dict(parts), unit
        self.loaded: int | None = None  # step of the checkpoint that was loaded last
        self._good: list[int] = []  # steps of the checkpoints known to be whole, oldest first

    def clean(self) -> None:
        """Remove what killed saves left. Only for the process that holds the folder's lock."""
        for leftover in self._directory.glob(".checkpoint-*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()

    def save(self, step: int) -> None:
        """Write a checkpoint, and remove all but the last two.

        Raises:
            OSError: a file could not be written (disk full, I/O error, ...); the earlier checkpoints stay.
        """
        final = self._directory / checkpoint_name(step)
        partial = self._directory / f".{final.name}.partial"
        with name_in_errors(partial):
            self._directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        try:
            self._write(partial, step)
            if final.exists():  # damaged, or of a run that went on from an earlier one
                remove_folder(final, f".{final.name}.old")
            with name_in_errors(final):
                partial.replace(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        flush_folder(self._directory)
        self._good = [*(good for good in self._good if good != step), step][-KEPT_CHECKPOINTS:]
        for other, path in checkpoint_folders(self._directory).items():
            if other not in self._good:
                remove_folder(path, f".{path.name}.old")

    def _write(self, folder: Path, step: int) -> None:
        files: dict[str, dict[str, Any]] = {}
        values: dict[str, Any] = {}
        for name, part in self._parts.items():
            tensors, values[name] = _split(part.state_dict())
            if tensors:
                file = f"{name}{TENSORS}"
                files[file] = _described(*write_new(folder / file, tensor_chunks(tensors)))
        files[VALUES] = _described(*write_new(folder / VALUES, [json.dumps(values).encode()]))
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
        text = json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1)
        write_new(folder / MANIFEST, [text.encode()])
        flush_folder(folder)

    def load_latest(self) -> bool:
        """Restore the newest checkpoint that is whole and fits these parts; False where there is none at all.

        Where a newer one is damaged or does not fit, a warning says so, and how many steps are lost.

        Raises:
            ValueError: no checkpoint is whole and fits, or another version wrote one; or a part could not be saved.
            OSError: a file cannot be read.
        """
        schemas = {name: part.schema() for name, part in self._parts.items()}
        found = checkpoint_paths(self._directory)
        problems: list[str] = []
        for step in reversed(found):
            path = found[step]
            try:
                self._load(self._read(path, step, schemas))
            except (DamagedFile, Unfit) as error:
                problems.append(f"{path.name}: {error}")
                continue
            self.loaded, self._good = step, [step] if problems else list(found)[-KEPT_CHECKPOINTS:]
            if problems:
                lost = max(found) - step
                _log.warning("%s; going on from %s: %d %s are lost", problems[0], path.name, lost, self._unit)
            return True
        if problems:
            raise UserError(
                f"no checkpoint in {self._directory} can be used ({'; '.join(problems)}): "
                "restore that folder from a backup, or start anew in another folder"
            )
        return False

    def load(self, step: int) -> None:
        """Restore the checkpoint of one step.

        Raises:
            UserError: there is none of that step, it is damaged, or it was not written for these parts.
        """
        found = checkpoint_folders(self._directory)
        if step not in found:
            others = f"; there are: {', '.join(map(str, found))}" if found else ""
            raise UserError(f"{self._directory} holds no checkpoint of {step} {self._unit}{others}")
        schemas = {name: part.schema() for name, part in self._parts.items()}
        try:
            self._load(self._read(found[step], step, schemas))
        except (DamagedFile, Unfit) as error:
            raise type(error)(f"{found[step]}: {error}") from error
        self.loaded, self._good = step, [step]

    def _load(self, states: Mapping[str, dict[str, Any]]) -> None:
        try:
            for name, part in self._parts.items():
                part.load_state_dict(states[name])
        except SchemaError as error:
            raise _unfit(error) from error

    def _read(self, path: Path, step: int, schemas: Mapping[str, Schema]) -> dict[str, dict[str, Any]]:
        """The verified state of each part of a checkpoint; nothing is loaded yet."""
        files = _manifest(path, step)["files"]
        wanted = {VALUES, *(f"{name}{TENSORS}" for name in self._parts)}
        for file in sorted(wanted & files.keys()):
            _verify(path / file, files[file])
        if VALUES not in files:
            raise DamagedFile(f"{MANIFEST} names no {VALUES}")
        values = _json(path / VALUES)
        if not isinstance(values, dict):
            raise DamagedFile(f"{VALUES} holds no parts by name")
        states: dict[str, dict[str, Any]] = {}
        for name, schema in schemas.items():
            file = f"{name}{TENSORS}"
            tensors = read_tensors(path / file) if file in files else {}
            try:
                states[name] = _join(tensors, values.get(name))
                require(states[name], schema, name)
            except SchemaError as error:
                raise _unfit(error) from error
        return states


def _described(size: int, digest: str) -> dict[str, Any]:
    return {"bytes": size, "sha256": digest}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _manifest(path: Path, step: int) -> dict[str, Any]:
    """The manifest of a checkpoint, verified.

    Raises:
        DamagedFile: it is missing, torn or altered. ValueError: another version of mbrl wrote it.
    """
    manifest = _json(path / MANIFEST)
    if not isinstance(manifest, dict):
        raise DamagedFile(f"{MANIFEST} is no object")
    if manifest.get("format") == OLD_FORMAT and "components" in manifest:
        raise UserError(
            f"{path} was written by mbrl 0.1, whose format could hold code and is no longer read: go on with it there "
            "(git checkout 406b675), or start anew in another folder"
        )
    signed = manifest.pop("sha256", None)
    if signed != _digest(manifest):
        raise DamagedFile(f"{MANIFEST} does not match its checksum")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise UserError(f"{path} is of version {manifest.get('version')}, and this mbrl reads version {VERSION}")
    if manifest.get("step") != step:
        raise DamagedFile(f"{MANIFEST} is of step {manifest.get('step')}")
    if not isinstance(manifest.get("files"), dict):
        raise DamagedFile(f"{MANIFEST} lists no files")
    return manifest


def _verify(file: Path, described: Any) -> None:
    """DamagedFile where a file has not the size and the checksum that the manifest says."""
    if not isinstance(described, dict):
        raise DamagedFile(f"{MANIFEST} does not describe {file.name}")
    try:
        size = file.stat().st_size
        if size != described.get("bytes"):
            raise DamagedFile(f"{file.name} has {size} bytes instead of {described.get('bytes')}")
        if sha256_of(file) != described.get("sha256"):
            raise DamagedFile(f"{file.name} does not match its checksum")
    except FileNotFoundError as error:
        raise DamagedFile(f"{file.name} is missing") from error


def _json(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise DamagedFile(f"{file.name} is too large")
        return parse_json(file.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DamagedFile(f"{file.name} is missing") from error
    except DamagedFile:
        raise
    except ValueError as error:
        raise DamagedFile(f"{file.name} is no JSON") from error


def _unfit(error: SchemaError) -> Unfit:
    return Unfit(f"it does not fit this configuration: {error}")


def _split(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by their path, such as "actor/0.weight"; and what is none of them, nested as it was."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in state.items():
        assert isinstance(key, str) and "/" not in key, f"no key of a checkpoint: {key!r}"
        if isinstance(value, Tensor):
            tensors[prefix + key] = value
        elif isinstance(value, Mapping):
            inner, values[key] = _split(value, f"{prefix}{key}/")
            tensors |= inner
            if not values[key]:
                del values[key]
        else:
            values[key] = value
    return tensors, values


def _join(tensors: Mapping[str, Tensor], values: Any) -> dict[str, Any]:
    """The nested state that `_split` took apart.

    Raises:
        SchemaError: an entry is of both kinds.
    """
    state: dict[str, Any] = values if isinstance(values, dict) else {}
    for path, tensor in tensors.items():
        *groups, name = path.split("/")
        place = state
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise SchemaError(f"{path} lies in a value")
        if name in place:
            raise SchemaError(f"{path} is there twice")
        place[name] = tensor
    return state
