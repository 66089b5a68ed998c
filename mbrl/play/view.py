"""View of a session for the browser: one binary message, a header in JSON and then images.

The message is the length of the header (4 bytes, little endian), the header, and the files of its `images`, in order.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mbrl.play.session import Session
from mbrl.play.timeline import Moment

Picture = npt.NDArray[np.uint8]
DIGITS = 4  # of numbers in traces
_LENGTH = struct.Struct("<I")


def encode(header: dict[str, Any], pictures: Sequence[tuple[str, Picture]]) -> bytes:
    """A binary message.

    Args:
        header: its content beside the images.
        pictures: names and images uint8 [3, R, R].
    """
    files = [_png(picture) for _, picture in pictures]
    images = [{"name": name, "bytes": len(file)} for (name, _), file in zip(pictures, files, strict=True)]
    text = json.dumps({**header, "images": images}, allow_nan=False).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *files])


def _png(picture: Picture) -> bytes:
    """Lossless, because the page enlarges images without blur."""
    file = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def describe(session: Session) -> dict[str, Any]:
    """Where a session stands, for the header."""
    moments, moment = session.moments, session.moment
    shown = moments[session.first :]
    return {
        "kind": "view",
        "branch": session.branch_number,
        "branches": [
            {
                "number": branch.number,
                "parent": branch.parent,
                "fork": branch.fork,
                "last": len(branch.moments) - 1,
                "solved": any(row.success for row in branch.moments),
            }
            for branch in session.branches
        ],
        "cursor": session.cursor,
        "first": session.first,
        "last": len(moments) - 1,
        "goal": session.goal - 1,
        "action": None if moment.action is None else [round(float(value), 3) for value in moment.action],
        "depth": moment.depth,
        "since": moment.since,
        "success": moment.success,
        "over": moment.over,
        "temperature": session.model.temperature,
        "anchors": [[session.first + at, row.anchor] for at, row in enumerate(shown) if row.anchor],
        "traces": {
            "real": [_rounded(row.reward) for row in shown],
            "imagined": [_rounded(row.imagined_reward) for row in shown],
            **{name: [_rounded(row.measures.get(name)) for row in shown] for name in session.model.uncertainty_keys},
        },
    }


def pictures_of(session: Session) -> list[tuple[str, Picture]]:
    """Both worlds at the current moment, and the imagined one of each other branch at the same step."""
    found = [("real", session.moment.real["pixels"]), ("imagined", session.moment.imagined["pixels"])]
    for branch in session.branches:
        if branch.number != session.branch_number:
            row: Moment = branch.moments[min(session.cursor, len(branch.moments) - 1)]
            found += [
                (f"real {branch.number}", row.real["pixels"]),
                (f"imagined {branch.number}", row.imagined["pixels"]),
            ]
    return found


def _rounded(value: float | None) -> float | None:
    """The number with few digits; None where JSON has none for it."""
    return None if value is None or not np.isfinite(value) else round(value, DIGITS)
