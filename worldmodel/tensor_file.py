"""Weights of other projects: a file of named tensors, never unpickled as anything else."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or a torch file by name.

    Raises FileNotFoundError where the file is absent, ValueError where it cannot be read as a dictionary of tensors.
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
