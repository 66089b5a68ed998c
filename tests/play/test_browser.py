"""The page in a real, headless Chromium: keys, branch, rewind, hand-over, save, a lost connection, labels, widths.

The world model is the simulator itself, so that both pictures show the same.
"""

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HINT = "pip install -e '.[dev]' and apt-get install chromium"
pytest.importorskip("aiohttp", reason=f"needs aiohttp: {HINT}")
playwright = pytest.importorskip("playwright.sync_api", reason=f"needs playwright: {HINT}")

from aiohttp import web

from mbrl.data.episodes import read_episode
from mbrl.envs.simulator_model import SimulatorModel
from mbrl.envs.toy import make_env
from mbrl.play.episodes import Library
from mbrl.play.load import Parts
from mbrl.play.network import listen
from mbrl.play.recording import Recordings
from mbrl.play.server import PlayServer
from mbrl.play.session import Session
from tests.play.test_player import RightDriver
from tests.play.worlds import catch_up

pytestmark = pytest.mark.process  # a browser
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE = 30.0  # seconds
SIDE, LENGTH = 16, 200
# Where the white square is in a picture.
PLACE = """name => {
  const canvas = document.getElementById(name), { width, height } = canvas;
  const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let x = 0, y = 0, n = 0;
  for (let i = 0; i < width * height; i++)
    if (Math.min(...data.slice(4 * i, 4 * i + 3)) > 240) { x += i % width; y += Math.floor(i / width); n++; }
  return [x / n, y / n];
}"""
# What a screen reader has no name for.
UNNAMED = """() => [...document.querySelectorAll("button, input, select, canvas")].filter(each =>
  each.checkVisibility() &&
  !(each.ariaLabel || each.labels?.length || each.textContent.trim() || each.closest("button")?.ariaLabel)
).map(each => each.outerHTML.slice(0, 80))"""


def toy_parts(folder: Path) -> Parts:
    def make(**options: Any) -> Any:
        return make_env(resolution=SIDE, episode_length=LENGTH, snapshots=True, **options)

    env = make()
    session = Session(env, SimulatorModel(env.observation_spec, env.action_spec, env=make()))
    drivers = {"policy": RightDriver()}
    return Parts("the toy", "toy", session, drivers, Library({}, make), Recordings(folder, {"task": "toy"}))


class Served:
    """The server in a thread; the connection to it can be cut."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._reserved = socket.socket()  # never listens: it keeps the port from others while the connection is cut
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self._do(self._start(folder))

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _start(self, folder: Path) -> None:
        self.server = PlayServer(lambda: toy_parts(folder), "127.0.0.1")
        self._runner = web.AppRunner(await self.server.start())
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        self._site = web.SockSite(self._runner, listen("127.0.0.1", self.port))
        await self._site.start()

    async def _cut(self) -> None:
        await self._site.stop()
        for browser in list(self.server._browsers):
            await browser.socket.close()

    def cut(self) -> None:
        self._do(self._cut())

    def mend(self) -> None:
        self._do(self._listen())

    def close(self) -> None:
        self._do(self._runner.cleanup())
        self._do(self.server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._reserved.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(f"needs Chromium: {HINT}, or its path in CHROMIUM")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path)
    yield one
    one.close()


@pytest.fixture
def page(chromium: Any, served: Served) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 1280, "height": 860})
    one = context.new_page()
    errors: list[str] = []
    one.on("pageerror", lambda error: errors.append(str(error)))
    one.goto(f"http://127.0.0.1:{served.port}/")
    one.wait_for_selector('body[data-step="0"]')
    yield one
    context.close()
    assert not errors


def step(page: Any) -> int:
    return int(page.evaluate("Number(document.body.dataset.step)"))


def until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def stand_still(page: Any, served: Served) -> None:
    """Wait until keys and buttons that were let go of have stopped the session, and the page shows its last step."""
    until(lambda: not served.server.player._wants_step())
    catch_up(served.server.player)  # with the step that was being taken
    until(lambda: step(page) == served.server.parts.session.cursor)


def hold(page: Any, served: Served, *keys: str, steps: int) -> None:
    """Hold keys for so many steps or a few more, until everything stands still."""
    goal = step(page) + steps
    for key in keys:
        page.keyboard.down(key)
    until(lambda: step(page) >= goal)
    for key in keys:
        page.keyboard.up(key)
    stand_still(page, served)


def places(page: Any) -> np.ndarray[Any, Any]:
    """Where the white square is in both pictures, [2, (x, y)]."""
    return np.array([page.evaluate(PLACE, name) for name in ("real", "imagined")])


def test_keys_branches_hand_over_and_saving(page: Any, served: Served, tmp_path: Path) -> None:
    start = places(page)
    hold(page, served, "ArrowLeft", "ArrowUp", steps=6)  # to the corner: held keys act together
    corner = places(page)
    assert (corner < start).all() and (corner[0] == corner[1]).all()
    hold(page, served, "ArrowRight", steps=2)
    right = places(page)
    assert (right[:, 0] > corner[:, 0]).all() and (right[:, 1] == corner[:, 1]).all()

    middle = step(page) - 2
    page.evaluate(f"send('rewind', {{ index: {middle} }})")
    page.wait_for_selector(f'body[data-step="{middle}"]')
    page.keyboard.press("Period")
    page.wait_for_selector('body[data-branch="1"]')
    assert page.locator(".branch").count() == 2 and step(page) == middle + 1
    page.get_by_role("button", name="Branch 0,").click()
    page.wait_for_selector('body[data-branch="0"]')
    page.get_by_role("button", name="One step back").click()
    until(lambda: step(page) == middle)

    page.get_by_label("Who steers").select_option("policy")
    until(lambda: step(page) > middle + 3)
    page.keyboard.press("Escape")
    until(lambda: page.locator("#driver").input_value() == "you")
    assert (places(page)[:, 0] > right[:, 0]).all()

    page.get_by_role("button", name="Save episode").click()
    page.wait_for_selector("#toast:has-text('Saved')")
    (path,) = tmp_path.glob("*.safetensors")
    records = read_episode(path)
    assert len(records) == step(page) + 1 and records["action"][-2].tolist() == [1.0, 0.0]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download video").click()
    assert download.value.suggested_filename == "episode-00001.mp4"


def test_buttons_and_sliders_do_what_keys_do(page: Any, served: Served) -> None:
    start = places(page)
    button = page.get_by_role("button", name="sideways: left")
    box = button.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    until(lambda: step(page) >= 3)
    page.mouse.up()
    stand_still(page, served)
    assert (places(page)[:, 0] < start[:, 0]).all()
    before = step(page)
    page.get_by_role("slider", name="depth").focus()
    page.keyboard.press("ArrowRight")  # a slider that has the focus keeps its arrow keys
    until(lambda: step(page) > before)
    page.keyboard.press("KeyX")
    assert page.locator("#difference").is_visible()
    page.keyboard.press("KeyN")
    page.wait_for_selector('body[data-step="0"]')


def test_a_lost_connection_says_so_and_comes_back(page: Any, served: Served) -> None:
    hold(page, served, "ArrowRight", steps=2)
    before = step(page)
    served.cut()
    page.wait_for_selector("#toast:has-text('connection is lost')")
    assert page.locator("#play").is_disabled()
    served.mend()
    page.wait_for_selector("#link:has-text('you steer')")
    until(lambda: not page.locator("#toast").inner_text())
    assert step(page) == before
    hold(page, served, "ArrowLeft", steps=1)
    assert step(page) > before


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1280, "dark"), (390, "light"))),
    ],
)
def test_it_fits_and_everything_has_a_name(chromium: Any, served: Served, width: int, scheme: str) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(f"http://127.0.0.1:{served.port}/")
    page.wait_for_selector('body[data-step="0"]')
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not page.evaluate(UNNAMED)
    assert "imagined world" in page.locator("#imagined").get_attribute("aria-label")
    page.close()
