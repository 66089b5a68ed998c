"""`mbrl play`: load a world model and serve its page until it is interrupted."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from pathlib import Path

from mbrl.play.load import Parts, load_parts
from mbrl.play.network import is_loopback, listen
from mbrl.play.server import serve

_log = logging.getLogger(__name__)


def run(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8420,
    task: str | None = None,
    data: Path | None = None,
    config_dir: Path | None = None,
    checkpoint: int | None = None,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        path: a run folder, a folder of weights, or an id of the Hugging Face hub.
        host: address to listen on.
        port: port to listen on; 0 for a free one.
        task: see `mbrl.play.load.load_parts`, as the following ones.
        data: episodes to start from.
        config_dir: the user's own configurations.
        checkpoint: env steps of the checkpoint.

    Raises:
        UserError: the port is in use, or the model cannot be played with.
    """
    listening = listen(host, port)
    load = partial(load_parts, path, task=task, data=data, config_dir=config_dir, checkpoint=checkpoint)
    with listening:
        asyncio.run(serve(load, listening, host, partial(_announce, listening, host)))


def _announce(listening: socket.socket, host: str, parts: Parts) -> None:
    """Say where the page is, and what a person should know."""
    _log.setLevel(logging.INFO)
    for note in parts.notes:
        _log.warning("%s", note)
    if not is_loopback(host):
        _log.warning("whoever reaches %s can watch and steer: there is no password and no encryption", host)
    name = f"[{host}]" if ":" in host else host
    _log.info("open http://%s:%d in a browser; Ctrl-C ends", name, listening.getsockname()[1])
