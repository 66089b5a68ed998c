"""In which type the large matrix products are computed."""

import difflib
import logging

import torch
from torch import Tensor

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def autocast(tensor: Tensor, dtype: torch.dtype) -> torch.autocast:
    """Large matrix products in ``dtype`` on the tensor's device; none where that is float32."""
    return torch.autocast(tensor.device.type, dtype, enabled=dtype != torch.float32)


def precision_dtype(name: str) -> torch.dtype:
    """The type of that name; float32 where this machine would only emulate bfloat16, many times slower.

    Raises:
        ValueError: the name is none of PRECISIONS.
    """
    if name not in PRECISIONS:
        close = difflib.get_close_matches(name, PRECISIONS, 1, 0.0)[0]
        raise ValueError(f"precision {name!r} is unknown: did you mean {close!r}?")
    if PRECISIONS[name] == torch.bfloat16 and not computes_bfloat16():
        logging.getLogger(__name__).warning("this machine does not compute in bfloat16: float32 takes its place")
        return torch.float32
    return PRECISIONS[name]


def computes_bfloat16() -> bool:
    """Whether the GPU, where there is one, or else the processor has instructions for bfloat16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
