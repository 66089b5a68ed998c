"""One browser's connection, of which nothing grows: it gets the newest view, and a few answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import suppress

from aiohttp import web

MAX_MESSAGE = 2**20  # bytes: a longer one closes the connection; shorter ones that are too long get an error
MAX_REPLIES = 16  # that wait for a browser; the oldest ones are dropped
HEARTBEAT = 10.0  # seconds between two signs of life of a connection


class Browser:
    """One connection. What it has not received yet is bounded: the newest view, and a few answers."""

    def __init__(self, name: str) -> None:
        self.name, self.socket = name, web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=MAX_MESSAGE)
        self.heard = time.monotonic()
        self._view: bytes | None = None
        self._answers: deque[bytes | str] = deque(maxlen=MAX_REPLIES)
        self._news = asyncio.Event()

    def show(self, view: bytes) -> None:
        """Send the view, in the place of one that was not sent yet."""
        self._view = view
        self._news.set()

    def answer(self, message: bytes | str) -> None:
        """Send a binary or a JSON message, after those that wait already."""
        self._answers.append(message)
        self._news.set()

    def refuse(self, text: str) -> None:
        """Send an error."""
        self.answer(json.dumps({"kind": "error", "text": text}))

    async def send(self) -> None:
        """Send whatever there is, until the connection ends."""
        with suppress(ConnectionError):
            while not self.socket.closed:
                await self._news.wait()
                self._news.clear()
                while self._answers:
                    message = self._answers.popleft()
                    await self._put(message)
                view, self._view = self._view, None
                if view is not None:
                    await self.socket.send_bytes(view)

    async def _put(self, message: bytes | str) -> None:
        if isinstance(message, str):
            await self.socket.send_str(message)
        else:
            await self.socket.send_bytes(message)
