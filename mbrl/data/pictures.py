"""Pictures that lie one by one in a data set, decoded to 8 bits of red, green and blue, or refused by name."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mbrl.data.reading import Malformed, described

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow hands others to programs, such as Ghostscript
_OPAQUE = 255
# modes whose red, green and blue are exact in 8 bits; CMYK, 16 bit and floating point are not among them
_GREY_OR_COLOUR, _WITH_ALPHA, _PALETTE = ("RGB", "L", "1"), ("RGBA", "LA"), "P"


def decode(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """One picture, uint8 [H, W, 3].

    Args:
        data: the picture's file.
        name: what it is called in the error message.

    Raises:
        Malformed: it is torn, of another format, transparent, of more than 8 bits, or of several frames.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if getattr(image, "n_frames", 1) != 1:
                raise Malformed(f"{name} holds {image.n_frames} pictures, not one")  # type: ignore[attr-defined]
            return _in_colour(image, name)
    except Malformed:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many classes
        raise Malformed(f"{name} is a picture that cannot be decoded ({described(error)})") from error


def _in_colour(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    if image.mode == _PALETTE or (image.mode in _GREY_OR_COLOUR and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode in _WITH_ALPHA:
        image = image.convert("RGBA")
        if image.getextrema()[-1] != (_OPAQUE, _OPAQUE):
            raise Malformed(f"{name} is a picture with transparent parts: frames are opaque")
    elif image.mode not in _GREY_OR_COLOUR:
        raise Malformed(f"{name} is a picture of mode {image.mode}: frames are 8-bit grey or RGB")
    return np.asarray(image.convert("RGB"))


def stored(row: Any, name: str) -> bytes | str:
    """A picture as a cell of a table holds it: its file, or the path of the file that lies beside.

    Raises:
        Malformed: the cell holds neither.
    """
    data, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
    if isinstance(data, bytes) and data:
        return data
    if isinstance(path, str) and path:
        return path
    raise Malformed(f"{name} holds no picture")
