"""The web server of `mbrl play`: one page, one websocket, and the videos that the session saved."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from mbrl.errors import UserError
from mbrl.play.browser import Browser
from mbrl.play.controls import controls
from mbrl.play.load import Parts
from mbrl.play.messages import MAX_LETTERS, Command, parse
from mbrl.play.network import accepts_host
from mbrl.play.player import PERSON, Player

MAX_BROWSERS = 16
MAX_LISTED = 500  # episodes of a source
IDLE = 10.0  # seconds without a message, after which another browser may take over
REPLACED = 4001  # closes the connection of a browser that has come back; a copied tab then takes another name
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PlayServer:
    """Browsers, of which one steers and the others watch.

    Args:
        load: builds what is played with.
        host: address that is listened on, which decides the `Host` headers that are accepted.
    """

    def __init__(self, load: Callable[[], Parts], host: str) -> None:
        self._host = host
        self._browsers: list[Browser] = []
        self._steering: Browser | None = None
        self._newest: bytes | None = None
        self._pending = False
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.player = Player(
            load,
            self._publish,
            lambda message: self._call(self._tell, message),
            lambda: self._call(self.ended.set),
        )

    async def start(self) -> web.Application:
        """Build the parts in the player's thread; returns the application.

        Raises:
            Exception: whatever the loading raised.
        """
        self.parts = await asyncio.to_thread(self.player.start)
        self._greeting = json.dumps({"kind": "hello", **self._hello()})
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_LETTERS)
        app.add_routes(
            [web.get("/", self._page), web.get("/socket", self._socket), web.get("/video/{name}", self._video)]
        )
        app.on_shutdown.append(self._shutdown)
        return app

    async def close(self) -> None:
        """End the player's thread.

        Raises:
            Exception: the thread ended by it.
        """
        await asyncio.to_thread(self.player.close)

    async def _shutdown(self, _: web.Application) -> None:
        for browser in list(self._browsers):
            await browser.socket.close(code=1001, message=b"mbrl play has ended")

    # ---------------------------------------------------------------- from the player's thread
    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in the loop; nothing where the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _publish(self, view: bytes) -> None:
        self._newest = view
        if not self._pending:
            self._pending = True
            self._call(self._broadcast)

    def _broadcast(self) -> None:
        self._pending = False
        assert self._newest is not None
        for browser in self._browsers:
            browser.show(self._newest)

    def _tell(self, message: bytes) -> None:
        for browser in self._browsers:
            browser.answer(message)

    # ---------------------------------------------------------------- requests
    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a Host that is not this server, as in DNS rebinding, and add headers."""
        if not accepts_host(request.headers.get("Host", ""), self._host):
            raise web.HTTPForbidden(reason="unknown Host", headers=HEADERS)
        response = await handler(request)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _page(self, _: web.Request) -> web.Response:
        page = files("mbrl.play").joinpath("page.html").read_bytes()
        return web.Response(body=page, content_type="text/html", charset="utf-8")

    async def _video(self, request: web.Request) -> web.FileResponse:
        path = self.parts.recordings.video(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound(reason="no such video")
        disposition = f'attachment; filename="{path.name}"'
        return web.FileResponse(path, headers={"Content-Disposition": disposition})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        """Serve one browser, until it leaves."""
        if urlsplit(request.headers.get("Origin", "")).netloc != request.headers["Host"]:
            raise web.HTTPForbidden(reason="another origin")
        browser = Browser(request.query.get("id", "")[:64])
        await self._replace(browser.name)
        if len(self._browsers) >= MAX_BROWSERS:
            raise web.HTTPServiceUnavailable(reason=f"{MAX_BROWSERS} browsers are the most")
        await browser.socket.prepare(request)
        self._enter(browser)
        sending = asyncio.create_task(browser.send())
        try:
            async for message in browser.socket:
                browser.heard = time.monotonic()
                if message.type is WSMsgType.TEXT:
                    self._receive(browser, message.data)
                elif message.type is WSMsgType.BINARY:
                    browser.refuse("messages are JSON text")
        finally:
            sending.cancel()
            self._leave(browser)
        return browser.socket

    async def _replace(self, name: str) -> None:
        """Close the older connection of a browser that has come back."""
        for older in [each for each in self._browsers if name and each.name == name]:
            self._leave(older)
            await older.socket.close(code=REPLACED)

    def _enter(self, browser: Browser) -> None:
        self._browsers.append(browser)
        browser.answer(self._greeting)
        if self._newest is not None:
            browser.show(self._newest)
        if self._steering is None:
            self._steering = browser
        self._tell_roles()

    def _leave(self, browser: Browser) -> None:
        if browser not in self._browsers:
            return
        self._browsers.remove(browser)
        if browser is self._steering:
            self.player.release()
            self._steering = self._browsers[0] if self._browsers else None
        self._tell_roles()

    def _tell_roles(self) -> None:
        for browser in self._browsers:
            role = {"kind": "role", "steers": browser is self._steering, "browsers": len(self._browsers)}
            browser.answer(json.dumps(role))

    def _receive(self, browser: Browser, text: str) -> None:
        try:
            command = parse(text)
            if command.name == "steer":
                self._take_over(browser)
            elif browser is not self._steering:
                raise UserError("another browser steers")
            elif command.name == "act":
                self.player.act(**command.values)
            else:
                self._submit(browser, command)
        except UserError as error:
            browser.refuse(str(error))

    def _submit(self, browser: Browser, command: Command) -> None:
        self.player.submit(command, lambda message: self._call(browser.answer, message))

    def _take_over(self, browser: Browser) -> None:
        """Let a browser steer, if the one that does has been idle."""
        if self._steering is not None and self._steering is not browser:
            idle = time.monotonic() - self._steering.heard
            if idle < IDLE:
                raise UserError(f"another browser steers; you can take over when it has been idle for {IDLE:g} s")
            self.player.release()
        self._steering = browser
        self._tell_roles()

    def _hello(self) -> dict[str, Any]:
        """The facts that do not change during the session."""
        parts, session = self.parts, self.parts.session
        listed = {
            name: [[*pair] for pair in zip(source.names[:MAX_LISTED], source.lengths, strict=False)]
            for name, source in parts.library.sources.items()
        }
        return {
            "title": parts.title,
            "task": parts.task,
            "notes": parts.notes,
            "controls": controls(session.env, session.actions),
            "drivers": [PERSON, *parts.drivers],
            "sources": listed,
            "horizon": session.horizon,
            "resolution": session.model.resolution,
            "measures": list(session.model.uncertainty_keys),
            "has_reward": session.model.predicts_reward,
            "has_temperature": session.model.temperature is not None,
        }


async def serve(load: Callable[[], Parts], listening: socket.socket, host: str, ready: Callable[[Parts], None]) -> None:
    """Serve the page until the process is interrupted or terminated.

    Args:
        load: builds what is played with.
        listening: where to listen.
        host: see PlayServer.
        ready: called when the page can be opened.

    Raises:
        Exception: whatever the loading raised, or ended the player's thread.
    """
    server = PlayServer(load, host)
    runner = web.AppRunner(await server.start(), access_log=None)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.ended.set)
    try:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        ready(server.parts)
        await server.ended.wait()
    finally:
        await runner.cleanup()
        await server.close()
