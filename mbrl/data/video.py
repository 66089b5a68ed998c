"""Frames of a video file, decoded by ffmpeg one at a time and held against the rate that the data set states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mbrl.data.reading import Malformed, reading

RATE_TOLERANCE = 0.02  # share of the rate: containers round it
# no playlist in the place of a video opens other files or addresses
_INPUT = ("-protocol_whitelist", "file", "-format_whitelist", "mov,matroska,webm,avi", "-xerror")


def read_video(
    path: Path, *, begin: float, length: int, fps: float, alone: bool, name: str
) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames [H, W, 3] of one episode.

    Args:
        path: the video.
        begin: seconds at which the episode begins in it.
        length: frames of the episode.
        fps: frames per second, as the data set states them.
        alone: whether the video ends with the episode.
        name: of the episode, for the error message.

    Raises:
        UserError: the video is torn, has another rate, or another number of frames.
    """
    import imageio_ffmpeg  # Here, so that all but videos works on a machine without ffmpeg.

    # half a frame early, so that rounding cannot lose the first one; every frame as it is stored, none made up
    seek = ["-ss", f"{max(0.0, begin - 0.5 / fps):.6f}"]
    wanted = length + alone
    exact = ["-fps_mode", "passthrough", "-frames:v", str(wanted)]
    count = 0
    with reading(path):
        # an absolute path is never taken for the name of a protocol
        frames = imageio_ffmpeg.read_frames(path.absolute(), input_params=[*_INPUT, *seek], output_params=exact)
        try:
            meta = next(frames)
        except (OSError, RuntimeError, StopIteration) as error:  # with all that ffmpeg printed
            raise Malformed("torn, or no video that ffmpeg reads") from error
        if not abs(meta["fps"] - fps) <= RATE_TOLERANCE * fps:
            raise Malformed(f"has {meta['fps']:g} frames/s, and the data set states {fps:g}: give it a video of that")
        width, height = meta["size"]
        for frame in frames:
            count += 1
            if count <= length:
                yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        if count != length:
            found = f"more than {length}" if count > length else str(count)
            raise Malformed(f"{found} frames of {name}, not {length}")
