"""Hyper-parameters and videos for TensorBoard, beside its scalars."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import imageio.v3 as iio
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

RESULTS = ("eval/success", "eval/return")  # what the table of hyper-parameters shows beside them


def add_settings(board: SummaryWriter, settings: Mapping[str, Any]) -> None:
    """A run's flat settings as the hyper-parameters of its own curves.

    (SummaryWriter.add_hparams would put them into a run of their own.)
    """
    shown = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
    columns, values, _ = hparams(shown, dict.fromkeys(RESULTS, 0.0))  # the third would say that the run has ended
    for summary in (columns, values):
        board._get_file_writer().add_summary(summary)


def add_video(board: SummaryWriter, name: str, frames: Tensor, step: int, fps: int = 10) -> None:
    """Frames uint8 [T, 3, H, W] as the animated image that TensorBoard takes for a video.

    (SummaryWriter.add_video would need moviepy for it.)
    """
    encoded = io.BytesIO()
    images = frames.permute(0, 2, 3, 1).numpy()
    iio.imwrite(encoded, images, extension=".gif", duration=1000 // fps, loop=0)
    height, width = frames.shape[-2:]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
    board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
