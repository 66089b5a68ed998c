"""Videos: reality, imagination and their difference side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tensordict import TensorDictBase
from torch import Tensor

from mbrl.errors import UserError
from worldmodel.base import WorldModel

SIDE = 256  # small frames are enlarged to about this, so that they can be watched
BORDER = 4
CAPTION = 16  # height of a line of text
GAIN = 2  # of the difference, so that it can be seen
IMAGINED = (230, 159, 0)  # orange frame: imagined
REAL = (0, 0, 0)


def write_video(path: Path, frames: Tensor, fps: int = 10) -> None:
    """Write frames uint8 [T, 3, H, W] as MP4 or GIF, by the file's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = frames.permute(0, 2, 3, 1).numpy()
    if path.suffix == ".gif":
        iio.imwrite(path, images, duration=1000 // fps, loop=0)
    else:
        iio.imwrite(path, images, fps=fps, codec="libx264", macro_block_size=1)


def imagination_video(model: WorldModel, rollout: TensorDictBase, horizon: int, path: Path) -> Tensor:
    """A real rollout [L] beside what the model imagines of it: real | imagined | difference; a still as PNG beside it.

    Imagination sees the real context and then the same actions for a horizon; then it starts afresh from the real
    frames, so the whole episode is covered. An orange border marks every imagined frame, a black one a real frame.

    Returns:
        The video's frames uint8 [T, 3, H, W].
    """
    real, imagined, is_imagined = imagine_along(model, rollout, horizon)
    step = model.context_length + horizon
    return write_comparison(path, real, imagined, is_imagined, range(model.context_length, step))


def write_comparison(
    path: Path, real: Tensor, imagined: Tensor, is_imagined: Tensor, shown: range, made: str = "imagined"
) -> Tensor:
    """A video of real | imagined | difference, frames uint8 [T, 3, R, R], and as PNG beside it about five of `shown`.

    The frames that `is_imagined` [T] says have an orange border, real ones a black one. `made` names the middle column.
    Returns the video's frames uint8 [T, 3, H, W].
    """
    strip = torch.stack([side_by_side(*row) for row in zip(real, imagined, is_imagined, strict=True)])
    write_video(path, strip)
    chosen = shown[:: max(1, len(shown) // 5)]
    rows = [_captions(strip.shape[-1], ("real", made, f"difference x {GAIN}"))]
    for step in chosen:
        rows += [_captions(strip.shape[-1], (f"frame {step}",)), strip[step]]
    iio.imwrite(path.with_suffix(".png"), torch.cat(rows, 1).permute(1, 2, 0).numpy())
    return strip


def _captions(width: int, texts: Sequence[str]) -> Tensor:
    """A white strip [3, CAPTION, width] with a text at the start of each of three columns."""
    image = Image.new("RGB", (width, CAPTION), "white")
    for column, text in enumerate(texts):
        ImageDraw.Draw(image).text((column * width // 3 + BORDER, 1), text, "black", ImageFont.load_default(12))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


@torch.no_grad()
def imagine_along(model: WorldModel, rollout: TensorDictBase, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """Imagine a real rollout [L] under its own actions, afresh from C real frames every C + horizon steps.

    Returns: real and imagined frames uint8 [T, 3, R, R] and bool [T], which of the latter are imagined.
    """
    device, context = next(model.parameters()).device, model.context_length
    pieces, marks = [], []
    whole = len(rollout) // (context + horizon) * (context + horizon)
    if whole == 0:
        raise UserError(f"an episode of {len(rollout)} steps is too short to imagine {context} + {horizon} frames")
    for start in range(0, whole, context + horizon):
        part = rollout[start : start + context + horizon].to(device)
        state = model.start(part[:context][None])
        frames = [part["pixels"][:context]]
        for t in range(context - 1, context + horizon - 1):
            state, prediction = model.step(state, part["action"][t][None])
            frames.append(prediction["pixels"])
        pieces.append(torch.cat(frames))
        marks.append(torch.arange(context + horizon) >= context)
    return rollout["pixels"][:whole].cpu(), torch.cat(pieces).cpu(), torch.cat(marks)


def side_by_side(real: Tensor, imagined: Tensor, is_imagined: Tensor) -> Tensor:
    """real | imagined | difference of one step, each [3, R, R], as one picture [3, H, W]."""
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
