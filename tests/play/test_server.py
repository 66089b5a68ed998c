"""The web server: who may connect, who steers, and what happens to messages that are malformed, huge or too many."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs aiohttp: pip install -e '.[play]'")

from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestClient, TestServer

from mbrl.errors import UserError
from mbrl.play import server as module
from mbrl.play.browser import MAX_MESSAGE, MAX_REPLIES, Browser
from mbrl.play.controls import controls
from mbrl.play.network import accepts_host, listen
from mbrl.play.server import MAX_BROWSERS, REPLACED, PlayServer
from tests.play.views import decode
from tests.play.worlds import PATIENCE, parts

Client = TestClient[Any, Any]
STEP = {"command": "step"}


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[PlayServer, Client]]:
    served = PlayServer(lambda: parts(folder), "127.0.0.1")
    try:
        async with TestClient(TestServer(await served.start(), host="127.0.0.1")) as client:
            yield served, client
    finally:
        await served.close()


def run(folder: Path, test: Callable[[PlayServer, Client], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with serving(folder) as (served, client):
            await asyncio.wait_for(test(served, client), PATIENCE)

    asyncio.run(all_of_it())


async def join(client: Client, name: str = "", **headers: str) -> ClientWebSocketResponse:
    origin = {"Origin": f"http://127.0.0.1:{client.port}"}
    return await client.ws_connect(f"/socket?id={name}", headers=origin | headers)


async def hear(browser: ClientWebSocketResponse, kind: str, **values: Any) -> dict[str, Any]:
    """The next message of a kind with these values; others are passed over."""
    while True:
        message = await browser.receive(PATIENCE)
        assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message
        found = json.loads(message.data) if message.type is WSMsgType.TEXT else decode(message.data)
        if found["kind"] == kind and all(found[key] == value for key, value in values.items()):
            return dict(found)


def test_a_browser_gets_the_page_the_worlds_and_steers(tmp_path: Path) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        page = await client.get("/")
        text = await page.text()
        assert page.status == 200 and text.startswith("<!doctype html>")
        assert "http://" not in text.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
        browser = await join(client)
        hello = await hear(browser, "hello")
        assert hello["task"] == "toy" and hello["controls"][0]["keys"] == ["ArrowLeft", "ArrowRight"]
        assert (await hear(browser, "role"))["steers"]
        await browser.send_json({"command": "act", "action": [1.0, 0.0], "held": True, "number": 5})
        await browser.send_json({"command": "act", "action": [0.0, 0.0], "held": False, "number": 6})
        assert (await hear(browser, "view", cursor=2))["action"] == [1.0, 0.0]

    run(tmp_path, test)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null", "", "https://localhost"])
def test_another_origin_is_refused(origin: str, tmp_path: Path) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        with pytest.raises(WSServerHandshakeError, match="403"):
            await join(client, Origin=origin)
        with pytest.raises(WSServerHandshakeError, match="403"):
            await client.ws_connect("/socket")

    run(tmp_path, test)


@pytest.mark.parametrize("path", ["/", "/socket", "/video/episode-00000.mp4"])
def test_an_unknown_host_is_refused(path: str, tmp_path: Path) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        answer = await client.get(path, headers={"Host": "evil.example:80"})
        assert answer.status == 403

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("header", "host", "accepted"),
    [
        ("127.0.0.1:8420", "127.0.0.1", True), ("localhost:9", "127.0.0.1", True), ("[::1]:1", "::1", True),
        ("LOCALHOST", "127.0.0.1", True), ("10.0.0.3:8420", "127.0.0.1", False), ("", "127.0.0.1", False),
        ("evil.example", "127.0.0.1", False), ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("[", "127.0.0.1", False), ("127.0.0.1@evil.example", "127.0.0.1", False),
        ("10.0.0.3:8420", "0.0.0.0", True), ("[fe80::1]:8420", "::", True), ("evil.example", "0.0.0.0", False),
        (socket.gethostname(), "0.0.0.0", True), ("lab.example", "lab.example", True),
    ],
)  # fmt: skip
def test_hosts(header: str, host: str, accepted: bool) -> None:
    assert accepts_host(header, host) is accepted


def test_bad_messages_get_an_error_and_end_nothing(tmp_path: Path) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        browser = await join(client)
        for bad in ("{", '{"command": "fly"}', "x" * 100_000, "[" * 4000, '{"command": "rewind", "index": 9}'):
            await browser.send_str(bad)
            assert (await hear(browser, "error"))["text"]
        await browser.send_bytes(b"\x00" * 10)
        assert "JSON text" in (await hear(browser, "error"))["text"]
        await browser.send_json(STEP)
        await hear(browser, "view", cursor=2)
        await browser.send_str("x" * (MAX_MESSAGE + 1))
        while (await browser.receive(PATIENCE)).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED):
            pass
        assert browser.close_code == 1009
        other = await join(client)
        assert (await hear(other, "view"))["cursor"] == 2

    run(tmp_path, test)


def test_a_flood_of_messages_is_answered_and_nothing_grows(tmp_path: Path) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        browser = await join(client)
        for number in range(2000):
            await browser.send_json({"command": "act", "action": [0.0, 0.1], "held": False, "number": number})
            await browser.send_json({"command": "rewind", "index": 1})
        assert "busy" in (await hear(browser, "error"))["text"]
        assert all(len(each._answers) <= MAX_REPLIES for each in served._browsers)
        while served.parts.session.cursor < 2:  # The step, too, is refused while earlier commands wait.
            await browser.send_json(STEP)
            await asyncio.sleep(0.2)
        while (await hear(browser, "view"))["cursor"] < 2:
            pass

    run(tmp_path, test)


def test_one_steers_and_the_others_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        first, second = await join(client), await join(client)
        assert not (await hear(second, "role", browsers=2))["steers"]
        await second.send_json(STEP)
        assert "another browser steers" in (await hear(second, "error"))["text"]
        await second.send_json({"command": "steer"})
        assert "idle" in (await hear(second, "error"))["text"]
        await first.send_json(STEP)
        await hear(second, "view", cursor=2)
        monkeypatch.setattr(module, "IDLE", 0.0)
        await second.send_json({"command": "steer"})
        assert (await hear(second, "role"))["steers"] and not (await hear(first, "role", steers=False))["steers"]
        await second.close()
        assert (await hear(first, "role", steers=True))["browsers"] == 1

    run(tmp_path, test)


def test_a_closed_tab_stops_time_and_frees_its_place(tmp_path: Path) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        browser = await join(client)
        await browser.send_json({"command": "play", "on": True})
        await hear(browser, "view", playing=True)
        await browser.close()
        while served._browsers or served.player.playing:
            await asyncio.sleep(0.01)
        assert served._steering is None

    run(tmp_path, test)


def test_a_browser_that_comes_back_steers_again(tmp_path: Path) -> None:
    """Its old connection may not have been noticed to be dead."""

    async def test(served: PlayServer, client: Client) -> None:
        old = await join(client, "one")
        await hear(old, "role", steers=True)
        new = await join(client, "one")
        assert (await hear(new, "role", browsers=1))["steers"]
        while (await old.receive(PATIENCE)).type is not WSMsgType.CLOSE:
            pass
        assert old.close_code == REPLACED

    run(tmp_path, test)


def test_browsers_are_bounded(tmp_path: Path) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        for _ in range(MAX_BROWSERS):
            await join(client)
        with pytest.raises(WSServerHandshakeError, match="503"):
            await join(client)

    run(tmp_path, test)


def test_only_videos_of_this_session_are_served(tmp_path: Path) -> None:
    async def test(served: PlayServer, client: Client) -> None:
        (tmp_path / "secret.mp4").write_bytes(b"secret")
        for name in ("secret.mp4", "..%2Fsecret.mp4", "%2Fetc%2Fpasswd", "episode-00000.mp4"):
            assert (await client.get(f"/video/{name}")).status == 404
        browser = await join(client)
        await browser.send_json(STEP)
        await hear(browser, "view", cursor=2)
        await browser.send_json({"command": "video"})
        name = (await hear(browser, "video"))["name"]
        answer = await client.get(f"/video/{name}")
        assert answer.status == 200 and "attachment" in answer.headers["Content-Disposition"]
        assert (await answer.read())[4:8] == b"ftyp"

    run(tmp_path, test)


def test_a_slow_browser_gets_the_newest_answers_and_the_newest_view_alone() -> None:
    received: list[bytes | str] = []

    class Socket:
        closed = False

        async def send_str(self, message: str) -> None:
            received.append(message)

        async def send_bytes(self, message: bytes) -> None:
            received.append(message)
            self.closed = True

    async def test() -> None:
        browser = Browser("slow")
        browser.socket = Socket()  # type: ignore[assignment]
        for number in range(100):
            browser.show(bytes([number]))
            browser.answer(str(number))
        await asyncio.wait_for(browser.send(), PATIENCE)

    asyncio.run(test())
    assert received == [*map(str, range(100 - MAX_REPLIES, 100)), bytes([99])]


def test_a_port_in_use_is_one_clear_line() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use: choose another one, such as --port"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen on port 0 of 203"):
        listen("203.0.113.7", 0)


def test_environments_without_pictures_to_go_by_have_plain_controls() -> None:
    made = controls(object(), 6)
    assert [control["name"] for control in made] == [f"action {number}" for number in range(1, 7)]
    assert made[0]["keys"] == ("ArrowLeft", "ArrowRight") and made[5]["keys"] == ("", "")
