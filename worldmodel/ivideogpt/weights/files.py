"""Find, read, write and check files of weights: in a folder, a file or on the Hugging Face hub."""

import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SUFFIX = ".safetensors"
REPOSITORY = Path("runs/reference/pretrained")  # weights in the repository, which a wheel does not contain
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Tensors = dict[str, Tensor]
Config = dict[str, Any]


def find(source: str | Path, part: str) -> Path:
    """Find the folder or file of a part ("tokenizer" or "transformer") of `source`.

    Args:
        source: a .safetensors file; a folder of one part; a folder with a sub-folder of the part's name; or a Hugging
            Face id, of which only .json and .safetensors files are downloaded (and cached).

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(source)
    if not path.exists() and HUB_ID.fullmatch(str(source)):
        path = _download(str(source), part)
    if not path.exists():
        hint = f"give a folder, a {SUFFIX} file or a hub id (user/name)"
        if path.is_relative_to(REPOSITORY) and not REPOSITORY.is_dir():
            place = f"worldmodel.pretrained=/PATH/OF/CLONE/{source}"
            hint = f"the clone holds them: start in its folder, or give their path, {place} (null: random weights)"
        raise FileNotFoundError(f"no weights at {source}: {hint}")
    return path / part if (path / part).is_dir() else path


def _download(source: str, part: str) -> Path:
    patterns = [f"{folder}*{suffix}" for folder in (f"{part}/", "") for suffix in (".json", SUFFIX)]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"no folder {source} here, and the Hugging Face hub did not give it ({type(error).__name__}: {reason})"
        ) from error


def read(path: Path, name: str) -> tuple[Tensors, Config]:
    """Read the tensors (float32) and the configuration of a part.

    Args:
        path: as `find` returns it.
        name: name of the weights' file in a folder, without suffix. The only .safetensors file there is read too, and
            so are numbered shards.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or of a type that could run code when read.
    """
    tensors: Tensors = {}
    for file in _files(path, name):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as safetensors ({' '.join(str(error).split())})") from error
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    config = path / "config.json" if path.is_dir() else path.with_name("config.json")
    return {key: value.float() for key, value in tensors.items()}, read_config(config)


def _files(path: Path, name: str) -> list[Path]:
    if path.is_file():
        if path.suffix != SUFFIX:
            raise ValueError(f"{path}: only {SUFFIX} files are read, as others can run code")
        return [path]
    if (path / f"{name}{SUFFIX}").is_file():
        return [path / f"{name}{SUFFIX}"]
    shards = sorted(path.glob(f"{name}-*-of-*{SUFFIX}"))
    others = sorted(path.glob(f"*{SUFFIX}"))
    if shards or len(others) == 1:
        return shards or others
    pickled = [file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".ckpt", ".pth")]
    hint = f"; {pickled[0]} is not read, as it can run code: convert it to safetensors" if pickled else ""
    raise FileNotFoundError(f"no {name}{SUFFIX} in {path}{hint}")


def read_config(path: Path) -> Config:
    """Read a config.json; empty if there is none. Raises ValueError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings by name")
    return config


def assign(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Set the tensors of a module, which may be on the meta device.

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen; names all of them.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    named = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    faults = [f"{fault}: {', '.join(names)}" for fault, names in named.items() if names]
    if faults:
        raise ValueError(f"{source} does not fit: {'; '.join(faults)}")
    typed = {name: value.to(wanted[name].dtype) for name, value in tensors.items()}
    module.load_state_dict(typed, assign=True)


def write(folder: Path, name: str, tensors: Mapping[str, Tensor], settings: Config) -> None:
    """Write a part for `read`. Each of its two files is written whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = folder / ".config.json", folder / f".{name}.safetensors"
    config.write_text(json.dumps(settings, indent=1, default=asdict), encoding="utf-8")
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, weights)
    except SafetensorError as error:  # its only error of the system, whose number is in its text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(weights)) from error
    for path in (config, weights):
        path.replace(path.with_name(path.name.removeprefix(".")))
