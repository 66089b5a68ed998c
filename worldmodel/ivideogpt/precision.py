"""Type of the large matrix products: float32 or bfloat16."""

import difflib
import logging
import time
from functools import cache

import torch
from torch import Tensor

from worldmodel.ivideogpt.distributed import decided_by_first_process

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTO = "auto"
LEAST_GAIN = 1.2  # least speed-up over float32 for which `auto` takes bfloat16 on a CPU
SIDE, ROUNDS = 768, 6  # matrix size and repetitions of the timing

_log = logging.getLogger(__name__)


class Precision:
    """float32 or bfloat16 for the large matrix products of a model. Weights stay float32.

    `auto` is decided once, at the first product, for the model's device then: bfloat16 if it multiplies faster. In
    distributed training the first process decides. A checkpoint stores the decision.

    Args:
        name: "float32", "bfloat16" or "auto".

    Raises:
        ValueError: the name is none of these.
    """

    def __init__(self, name: str) -> None:
        if name not in (*PRECISIONS, AUTO):
            close = difflib.get_close_matches(name, (*PRECISIONS, AUTO), 1, 0.0)[0]
            raise ValueError(f"precision {name!r} is unknown: did you mean {close!r}?")
        self._dtype = PRECISIONS.get(name)

    def dtype(self, device: torch.device) -> torch.dtype:
        """The type of the products on this device."""
        if self._dtype is None:
            faster = decided_by_first_process(computes_bfloat16(device), device)
            self._dtype = torch.bfloat16 if faster else torch.float32
        elif self._dtype == torch.bfloat16 and device.type == "cpu":
            warn_of_slow_bfloat16()
        return self._dtype

    def name(self, device: torch.device) -> str:
        """The name of that type."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype(device))

    def resume(self, name: str) -> None:
        """Take the precision of a checkpoint, with a warning if the setting differs.

        Raises:
            ValueError: the name is none of PRECISIONS.
        """
        if name not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"the checkpoint was computed in precision {name!r}, which is none of {known}")
        if self._dtype not in (None, PRECISIONS[name]):
            _log.warning("the checkpoint was computed in %s and goes on in it, whatever the setting says", name)
        self._dtype = PRECISIONS[name]


def autocast(tensor: Tensor, precision: Precision) -> torch.autocast:
    """Autocast large matrix products on the tensor's device; disabled in float32."""
    dtype = precision.dtype(tensor.device)
    return torch.autocast(tensor.device.type, dtype, enabled=dtype != torch.float32)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies large matrices faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_bfloat16_kernels() and bfloat16_gain() > LEAST_GAIN


def has_bfloat16_kernels() -> bool:
    """Whether oneDNN's bfloat16 kernels run on this processor; they do not with AVX2 alone."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def warn_of_slow_bfloat16() -> None:
    """Warn once that this processor multiplies slower in bfloat16, which a setting asks for."""
    if not has_bfloat16_kernels() or bfloat16_gain() * LEAST_GAIN < 1:
        _log.warning(
            "this processor multiplies slower in bfloat16 than in float32: worldmodel.precision=float32 takes less "
            "time here, and rounds differently"
        )


@cache
def bfloat16_gain() -> float:
    """Measured speed of large bfloat16 matrix products on this processor, relative to float32.

    The instruction set does not determine it: of two processors with avx512_bf16 an EPYC has 2.2, a Xeon 0.5.
    """
    single = torch.ones(SIDE, SIDE)
    half = single.to(torch.bfloat16)
    times = [(_seconds(single), _seconds(half)) for _ in range(ROUNDS)]  # interleaved: other load slows both
    return min(one for one, _ in times[1:]) / min(other for _, other in times[1:])


def _seconds(matrix: Tensor) -> float:
    began = time.process_time()  # CPU time of this process, which other load does not change
    matrix @ matrix
    return time.process_time() - began
