"""Images of any environment as `pixels`: three channels, square, of the run's resolution. R resolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mbrl.errors import UserError

LEAST_SIDE = 8  # pixels; a uint8 array with a shorter side is no image, such as a board of a game
FROM_STATE = "set env.pixels=false, and an agent from state"  # what helps where there are none


def is_picture(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether observations of this shape are images: uint8 [H, W], [H, W, 1] or [H, W, 3], 8 pixels or more."""
    flat = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3))
    return bool(flat and dtype == np.uint8 and min(shape[:2]) >= LEAST_SIDE)


def square(picture: Any, resolution: int, name: str) -> npt.NDArray[np.uint8]:
    """An image at another size; one that is not square is squeezed, so that nothing is cut off.

    Args:
        picture: uint8 [H, W], [H, W, 1] or [H, W, 3].
        resolution: R.
        name: what error messages call the environment.

    Returns:
        uint8 [3, R, R].

    Raises:
        UserError: it is no image.
    """
    if not isinstance(picture, np.ndarray) or not is_picture(picture.shape, picture.dtype):
        is_array = isinstance(picture, np.ndarray)
        found = f"{picture.dtype} {list(picture.shape)}" if is_array else type(picture).__name__
        raise UserError(f"{name} renders {found}, no image uint8 [H, W, 3]: {FROM_STATE}")
    if picture.ndim == 2 or picture.shape[-1] == 1:
        picture = np.repeat(picture.reshape(*picture.shape[:2], 1), 3, -1)
    if picture.shape[:2] != (resolution, resolution):
        # The mean over the pixels that become one: nothing small vanishes, as it would between sampled points.
        shrunk = Image.fromarray(np.ascontiguousarray(picture)).resize((resolution, resolution), Image.Resampling.BOX)
        picture = np.asarray(shrunk)
    return np.ascontiguousarray(picture.transpose(2, 0, 1))
