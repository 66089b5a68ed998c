"""Videos of real frames, imagined frames and their difference, side by side."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tensordict import TensorDictBase
from torch import Tensor

from mbrl.errors import UserError
from mbrl.run_folder.files import replacing, write_atomically
from worldmodel.base import WorldModel

SIDE = 256  # pixels; smaller frames are enlarged to about this side
BORDER = 4  # pixels
CAPTION = 16  # height of a line of text in pixels
GAIN = 2  # factor on the difference, to make it visible
FULL_BYTES = 2**20  # bytes; with less, a video that was cut short was so because the disk is full
MAX_STILLS = 5  # frames in the PNG beside a video, about
IMAGINED = (230, 159, 0)  # orange border
REAL = (0, 0, 0)
SUFFIXES = (".gif", ".mp4")


def require_video_name(path: Path) -> None:
    """UserError where a file's suffix is none of SUFFIXES, in small letters or capitals."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot write a video to {path}: its name must end in {' or '.join(SUFFIXES)}")


def write_video(path: Path, frames: Tensor, fps: int = 10) -> None:
    """Write a video.

    Args:
        path: file to write; its suffix decides between GIF (.gif) and MP4 (.mp4).
        frames: uint8 [T, 3, H, W].
        fps: frames per second.

    Raises:
        OSError: it could not be written; an older file stays as it was.
    """
    images = frames.permute(0, 2, 3, 1).numpy()
    if path.suffix.lower() == ".gif":
        write_atomically(path, iio.imwrite("<bytes>", images, extension=".gif", duration=1000 // fps, loop=0))
        return
    with replacing(path, path.suffix.lower()) as partial:
        written = 0
        with suppress(OSError, RuntimeError, IndexError):  # on a full disk they give no errno, or no error
            iio.imwrite(partial, images, fps=fps, codec="libx264", macro_block_size=1, ffmpeg_log_level="quiet")
            written = sum(1 for _ in iio.imiter(partial))
        if written != len(images):
            code = errno.ENOSPC if shutil.disk_usage(path.parent).free < FULL_BYTES else errno.EIO
            raise OSError(code, os.strerror(code), str(path))


def imagination_video(model: WorldModel, rollout: TensorDictBase, horizon: int, path: Path) -> Tensor:
    """Write a video of real | imagined | difference of a whole episode, and a PNG of some frames beside it.

    The model sees C real frames and imagines `horizon` steps under the real actions. It then starts again from the next
    C real frames. Imagined frames have an orange border, real ones a black border.

    Args:
        model: the world model.
        rollout: real steps [L].
        horizon: imagined steps between restarts.
        path: file of the video.

    Returns:
        The frames of the video, uint8 [T, 3, H, W].
    """
    real, imagined, is_imagined = imagine_along(model, rollout, horizon)
    step = model.context_length + horizon
    return write_comparison(path, real, imagined, is_imagined, range(model.context_length, step))


def write_comparison(
    path: Path, real: Tensor, imagined: Tensor, is_imagined: Tensor, shown: range, made: str = "imagined"
) -> Tensor:
    """Write a video of real | imagined | difference, and a PNG of some frames beside it.

    Args:
        path: file of the video.
        real: real frames, uint8 [T, 3, R, R].
        imagined: frames to compare with them, uint8 [T, 3, R, R].
        is_imagined: which of the latter get an orange border, bool [T]. The others get a black one.
        shown: frames to choose from for the PNG.
        made: caption of the middle column.

    Returns:
        The frames of the video, uint8 [T, 3, H, W].
    """
    strip = torch.stack([side_by_side(*row) for row in zip(real, imagined, is_imagined, strict=True)])
    write_video(path, strip)
    chosen = shown[:: max(1, len(shown) // MAX_STILLS)]
    rows = [_captions(strip.shape[-1], ("real", made, f"difference x {GAIN}"))]
    for step in chosen:
        rows += [_captions(strip.shape[-1], (f"frame {step}",)), strip[step]]
    still = torch.cat(rows, 1).permute(1, 2, 0).numpy()
    write_atomically(path.with_suffix(".png"), iio.imwrite("<bytes>", still, extension=".png"))
    return strip


def _captions(width: int, texts: Sequence[str]) -> Tensor:
    """A white strip [3, CAPTION, width] with texts at the left of up to three columns."""
    image = Image.new("RGB", (width, CAPTION), "white")
    for column, text in enumerate(texts):
        ImageDraw.Draw(image).text((column * width // 3 + BORDER, 1), text, "black", ImageFont.load_default(12))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


@torch.no_grad()
def imagine_along(model: WorldModel, rollout: TensorDictBase, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """Imagine an episode under its own actions, starting again from C real frames every C + horizon steps.

    Args:
        model: the world model.
        rollout: real steps [L].
        horizon: imagined steps between restarts.

    Returns:
        Real frames uint8 [T, 3, R, R], imagined frames uint8 [T, 3, R, R], and which of the latter are imagined and not
        context, bool [T].

    Raises:
        UserError: The episode has fewer than C + horizon steps.
    """
    context = model.context_length
    count = len(rollout) // (context + horizon)
    if count == 0:
        raise UserError(
            f"an episode of {len(rollout)} steps is too short for {context} context frames and a horizon of {horizon}"
        )
    parts = rollout[: count * (context + horizon)].reshape(count, -1).to(model.device)
    predicted = model.predict(parts[:, :context], parts["action"][:, context - 1 : -1])["pixels"]
    imagined = torch.cat([parts["pixels"][:, :context], predicted], 1)
    marks = torch.arange(context + horizon) >= context
    return parts["pixels"].flatten(0, 1).cpu(), imagined.flatten(0, 1).cpu(), marks.repeat(count)


def side_by_side(real: Tensor, imagined: Tensor, is_imagined: Tensor) -> Tensor:
    """Join real | imagined | difference of one step, each [3, R, R], into one image [3, H, W]."""
    difference = (real.int() - imagined.int()).abs().mul(GAIN).clamp(max=255).to(torch.uint8)
    colour = IMAGINED if is_imagined else REAL
    return torch.cat([_framed(real, REAL), _framed(imagined, colour), _framed(difference, REAL)], -1)


def _framed(image: Tensor, colour: tuple[int, int, int]) -> Tensor:
    scale = max(1, SIDE // image.shape[-1])
    large = image.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    size = large.shape[-1] + 2 * BORDER
    out = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, size, size).clone()
    out[:, BORDER:-BORDER, BORDER:-BORDER] = large
    return out
