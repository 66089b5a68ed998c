"""The web server of `mbrl play`: one page, one websocket, and the videos that the session saved."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from mbrl.errors import UserError
from mbrl.play.controls import controls
from mbrl.play.load import Parts
from mbrl.play.messages import MAX_LETTERS, Command, parse
from mbrl.play.player import PERSON, Player

MAX_MESSAGE = 2**20  # bytes: a longer one closes the connection; above MAX_LETTERS it gets an error
MAX_BROWSERS = 16
MAX_REPLIES = 16  # that wait for a browser; the oldest ones are dropped
MAX_LISTED = 500  # episodes of a source
IDLE = 10.0  # seconds without a message, after which another browser may take over
HEARTBEAT = 10.0  # seconds between two signs of life of a connection
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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
                    await (self.socket.send_str(message) if isinstance(message, str) else self.socket.send_bytes(message))
                view, self._view = self._view, None
                if view is not None:
                    await self.socket.send_bytes(view)


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
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_LETTERS)
        app.add_routes(
            [web.get("/", self._page), web.get("/socket", self._socket), web.get("/video/{name}", self._video)]
        )
        app.on_shutdown.append(self._shutdown)
        return app

    async def _shutdown(self, _: web.Application) -> None:
        for browser in list(self._browsers):
            await browser.socket.close(code=1001, message=b"mbrl play has ended")
        await asyncio.to_thread(self.player.close)

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
            raise web.HTTPForbidden(text="unknown Host\n", headers=HEADERS)
        response = await handler(request)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=files("mbrl.play").joinpath("page.html").read_text(), content_type="text/html")

    async def _video(self, request: web.Request) -> web.FileResponse:
        path = self.parts.recordings.video(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound(text="no such video\n")
        disposition = f'attachment; filename="{path.name}"'
        return web.FileResponse(path, headers={"Content-Disposition": disposition})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        """Serve one browser, until it leaves."""
        if urlsplit(request.headers.get("Origin", "")).netloc != request.headers["Host"]:
            raise web.HTTPForbidden(text="another origin\n")
        browser = Browser(request.query.get("id", "")[:64])
        await self._replace(browser.name)
        if len(self._browsers) >= MAX_BROWSERS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_BROWSERS} browsers are the most\n")
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
            await older.socket.close()

    def _enter(self, browser: Browser) -> None:
        self._browsers.append(browser)
        browser.answer(json.dumps({"kind": "hello", **self._hello()}))
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
        """What does not change during the session."""
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
            "measures": list(session.model.measures),
            "has_reward": session.model.predicts_reward,
            "has_temperature": session.model.temperature is not None,
        }


def accepts_host(header: str, host: str) -> bool:
    """Whether a Host header names this server.

    Args:
        header: such as 127.0.0.1:8420. The port does not matter, so that a tunnel may have another one.
        host: address that is listened on. Beyond the loopback, any address is accepted and this machine's name: names
            of others could point here, addresses cannot.
    """
    try:
        name = urlsplit(f"//{header}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    known = {"localhost", "127.0.0.1", "::1", host}
    if not is_loopback(host):
        known |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        with suppress(ValueError):
            known.add(str(ipaddress.ip_address(name)))
    return name in known


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UserError: the port is in use or not allowed, or there is no such address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use: choose another one, such as --port {port + 1}") from error
        raise UserError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error
    listening.listen()
    return listening


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
