"""Arrays of other people's files as the entries of an episode, checked before they are cast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl.data.reading import Malformed

Array = npt.NDArray[Any]
_INTEGER_FRAMES = (np.int32, np.int64)  # of 0 to 255: iVideoGPT's BAIR files
_MOST = float(np.finfo(np.float32).max)


def numbers(values: Array, name: str) -> npt.NDArray[np.float32]:
    """Values as float32.

    Raises:
        Malformed: they are no numbers, not finite, or out of the range of float32.
    """
    if values.dtype.kind not in "fiub":
        raise Malformed(f"{name} holds {values.dtype}, not numbers")
    if not (np.abs(values.astype(np.float64)) <= _MOST).all():
        raise Malformed(f"{name} holds NaN or infinite values")
    return values.astype(np.float32)


def flags(values: Array, name: str) -> npt.NDArray[np.bool_]:
    """Values as booleans.

    Raises:
        Malformed: they are neither booleans nor the numbers 0 and 1.
    """
    if values.dtype.kind not in "fiub" or not np.isin(values, (0, 1)).all():
        raise Malformed(f"{name} holds {values.dtype} other than true and false")
    return values.astype(bool)


def frames(image: Array, name: str) -> Tensor:
    """Pictures [T, H, W, 3], or grey [T, H, W, 1], as uint8 [T, 3, H, W].

    Raises:
        Malformed: they have another shape, or values that are no whole numbers of 0 to 255.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3) or 0 in image.shape or not _is_eight_bit(image):
        raise Malformed(
            f"{name} cannot be {image.dtype} {list(image.shape)} in an episode: frames are uint8 [T, H, W, 3]"
        )
    coloured = image.astype(np.uint8, copy=False).repeat(3 // image.shape[-1], -1)
    return torch.from_numpy(coloured).permute(0, 3, 1, 2)


def _is_eight_bit(image: Array) -> bool:
    if image.dtype == np.uint8:
        return True
    return image.dtype in _INTEGER_FRAMES and image.min() >= 0 and image.max() <= 255


def actions(values: Array, name: str, lengths: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Actions float32 [T, A], T one of `lengths`.

    Raises:
        Malformed: they have another shape, or are no finite numbers.
    """
    if values.ndim != 2 or values.shape[1] < 1 or len(values) not in lengths:
        raise Malformed(f"{lengths[0]} frames cannot have {name} {list(values.shape)}")
    return numbers(values, name)


def column(values: Array, name: str, length: int) -> Array:
    """Values [T] or [T, 1] as [T, 1].

    Raises:
        Malformed: they have another shape.
    """
    if values.shape not in ((length,), (length, 1)):
        raise Malformed(f"{length} frames cannot have {name} {list(values.shape)}")
    return values.reshape(length, 1)
