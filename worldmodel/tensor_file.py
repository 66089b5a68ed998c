"""Reads files of named tensors, such as weights of other projects, without running code from the file."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or a torch file, by name.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file cannot be read as a dictionary of tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} to read weights from")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors" if unsafe else str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a file of tensors: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} does not hold a dictionary of tensors")
    return tensors
