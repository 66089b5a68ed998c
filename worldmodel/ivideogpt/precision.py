"""In which type the large matrix products are computed."""

import difflib
import logging
import time
from functools import cache

import torch
from torch import Tensor

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WORTH = 1.2  # times faster than float32, from which on bfloat16 is used
SIDE, ROUNDS = 768, 6  # of the matrices that tell it


def autocast(tensor: Tensor, dtype: torch.dtype) -> torch.autocast:
    """Large matrix products in ``dtype`` on the tensor's device; none where that is float32."""
    return torch.autocast(tensor.device.type, dtype, enabled=dtype != torch.float32)


def precision_dtype(name: str) -> torch.dtype:
    """The type of that name; float32 where that is faster on this machine.

    Raises:
        ValueError: the name is none of PRECISIONS.
    """
    if name not in PRECISIONS:
        close = difflib.get_close_matches(name, PRECISIONS, 1, 0.0)[0]
        raise ValueError(f"precision {name!r} is unknown: did you mean {close!r}?")
    if PRECISIONS[name] == torch.bfloat16 and not computes_bfloat16():
        logging.getLogger(__name__).warning("bfloat16 is no faster than float32 here: float32 takes its place")
        return torch.float32
    return PRECISIONS[name]


def precision_name(dtype: torch.dtype) -> str:
    """The name of one of PRECISIONS."""
    return next(name for name, of_name in PRECISIONS.items() if of_name == dtype)


def recorded_dtype(name: str, chosen: torch.dtype) -> torch.dtype:
    """The precision that a checkpoint was computed in, with a warning where this machine would choose another.

    Args:
        name: the recorded one. chosen: what `precision_dtype` gives here.

    Raises:
        ValueError: the name is none of PRECISIONS.
    """
    if name not in PRECISIONS:
        raise ValueError(f"the checkpoint was computed in precision {name!r}, which is none of {', '.join(PRECISIONS)}")
    if PRECISIONS[name] != chosen:
        logging.getLogger(__name__).warning(
            "the checkpoint was computed in %s and goes on in it; a new run would compute in %s here",
            name,
            precision_name(chosen),
        )
    return PRECISIONS[name]


def computes_bfloat16() -> bool:
    """Whether the GPU, where there is one, or else the processor is faster in bfloat16 than in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_bfloat16_kernels() and bfloat16_gain() > WORTH


def has_bfloat16_kernels() -> bool:
    """Whether this processor has what oneDNN's bfloat16 kernels need; older ones (AVX2 alone) are refused by them."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def bfloat16_gain() -> float:
    """How many times faster this processor multiplies large matrices in bfloat16 than in float32.

    That it has instructions for it says little: of two with avx512_bf16 an EPYC was measured at 2.2, a Xeon at 0.5.
    """
    single = torch.ones(SIDE, SIDE)
    half = single.to(torch.bfloat16)
    times = [(_seconds(single), _seconds(half)) for _ in range(ROUNDS)]  # interleaved: other load weighs on both
    return min(one for one, _ in times[1:]) / min(other for _, other in times[1:])


def _seconds(matrix: Tensor) -> float:
    began = time.process_time()  # of this process alone, whatever runs beside it
    matrix @ matrix
    return time.process_time() - began
