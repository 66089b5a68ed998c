"""Makes Meta-World's textures, most of what pack.sh packs, smaller for the way, and restores them pixel by pixel.

python3 tests/gpu/textures.py shrink FOLDER     writes the pixels of the large ones as lossless WebP
python3 tests/gpu/textures.py restore FOLDER    writes those as PNG again
"""

import io
import sys
from pathlib import Path

from PIL import Image

LARGE = 200_000  # bytes
DEPTH, COLOUR, INTERLACE = 24, 25, 28  # places in a PNG of the bits of a colour, the colour type, the order of pixels
MODES = {2: "RGB", 6: "RGBA"}  # by colour type
WEBP = b"WEBPVP8L"  # eight bytes after the beginning of a lossless one


def shrink(folder: Path) -> None:
    """Leave all of a PNG up to its pixels, of whose colours MuJoCo may read, and write the pixels as WebP."""
    for file in folder.rglob("*.png"):
        content = file.read_bytes()
        if len(content) < LARGE or content[DEPTH] != 8 or content[COLOUR] not in MODES or content[INTERLACE]:
            continue
        with Image.open(file) as image:
            bare, written = Image.frombytes(image.mode, image.size, image.tobytes()), io.BytesIO()
        bare.save(written, "WEBP", lossless=True, exact=True, quality=60, method=2)
        file.write_bytes(min(content, content[: _pixels(content)] + written.getvalue(), key=len))


def restore(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        content = file.read_bytes()
        begin = content.find(WEBP) - 8
        if begin > 0:
            with Image.open(io.BytesIO(content[begin:])) as image:  # RGB where nothing is transparent
                written = io.BytesIO()
                image.convert(MODES[content[COLOUR]]).save(written, "PNG", compress_level=1)
            file.write_bytes(content[:begin] + written.getvalue()[_pixels(written.getvalue()) :])


def _pixels(content: bytes) -> int:
    """Where the first chunk of pixels begins, with its length, before its name."""
    return content.index(b"IDAT") - 4


if __name__ == "__main__":
    {"shrink": shrink, "restore": restore}[sys.argv[1]](Path(sys.argv[2]))
