"""What the page of `mbrl play` reads in a message of `mbrl.play.view.encode`."""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTH = struct.Struct("<I")  # of the header


def decode(message: bytes) -> dict[str, Any]:
    """The header of a binary message."""
    header: dict[str, Any] = json.loads(message[LENGTH.size :][: LENGTH.unpack_from(message)[0]])
    return header
