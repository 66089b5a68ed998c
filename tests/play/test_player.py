"""The player's thread: taps and held keys, play and pause, commands, drivers, the end of an episode, failures."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbrl.collecting.acting import Acting
from mbrl.envs.toy import make_env
from mbrl.errors import UserError
from mbrl.play.drivers import Driver, PolicyDriver
from mbrl.play.load import Parts
from mbrl.play.messages import Command
from mbrl.play.player import MAX_WAITING, Player
from mbrl.play.session import Session
from tests.collecting.test_imagining import WanderingPolicy
from tests.play.views import decode
from tests.play.worlds import LENGTH, PATIENCE, SIDE, catch_up, parts, session

RIGHT, STILL = [1.0, 0.0], [0.0, 0.0]


class Played:
    """A player, not started yet, with what it says."""

    def __init__(self, made: Parts) -> None:
        self.views: list[dict[str, Any]] = []
        self.said: list[dict[str, Any]] = []
        self.parts = made
        self.failed = threading.Event()
        self.player = Player(lambda: self.parts, self.look, lambda m: self.said.append(decode(m)), self.failed.set)

    def look(self, message: bytes) -> None:
        self.views.append(decode(message))

    def do(self, name: str, **values: Any) -> dict[str, Any]:
        """Carry out a command; returns its answer, if any, or a view in which it has been carried out."""
        answers: list[dict[str, Any]] = []
        self.player.submit(Command(name, values), lambda message: answers.append(decode(message)))
        catch_up(self.player)
        return answers[0] if answers else self.views[-1]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, self.views[-1:]
            time.sleep(0.002)

    @property
    def step(self) -> int:
        return int(self.views[-1]["cursor"])


@contextmanager
def playing(made: Parts) -> Iterator[Played]:
    """A started player, which is closed also where the test fails: its thread would keep the process alive."""
    one = Played(made)
    try:
        one.player.start()
        one.until(lambda: bool(one.views))
        yield one
    finally:
        one.player.close()


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    with playing(parts(tmp_path)) as one:
        yield one


def test_a_tap_between_two_steps_is_one_step(played: Played) -> None:
    before = played.step
    played.do("speed", value=0.1)  # A held key steps again after 10 s: more than a busy machine puts between two lines.
    played.player.act(RIGHT, True, 1)
    played.player.act(STILL, False, 2)
    played.until(lambda: played.step >= before + 1)
    played.do("play", on=False)  # A second step would now be due at once.
    time.sleep(0.15)
    assert played.step == before + 1 and played.views[-1]["action"] == RIGHT and not played.views[-1]["playing"]


def test_a_held_key_steps_until_it_is_let_go(played: Played) -> None:
    played.do("speed", value=30)
    played.player.act(RIGHT, True, 1)
    played.until(lambda: played.step >= 4)
    played.player.act(STILL, False, 2)
    catch_up(played.player)  # with the step that was being taken
    stopped = played.step
    time.sleep(0.2)
    assert played.step == stopped
    assert all(view["action"] in (None, STILL, RIGHT) for view in played.views)


def test_time_runs_at_its_speed_and_the_newest_input_wins(played: Played) -> None:
    played.player.act(RIGHT, False, 7)
    played.do("speed", value=20)
    start = time.monotonic()
    played.do("play", on=True)
    played.until(lambda: played.step >= 9)
    assert time.monotonic() - start > 7 / 20
    assert played.do("play", on=False)["input"] == 7 and played.views[-1]["action"] == RIGHT


def test_single_steps_and_rewinds_make_branches(played: Played) -> None:
    for step in (2, 3, 4):
        played.do("step")
        played.until(lambda step=step: played.step == step)
    assert played.do("rewind", index=2)["cursor"] == 2
    played.do("step")
    played.until(lambda: played.views[-1]["branch"] == 1)
    assert [branch["number"] for branch in played.views[-1]["branches"]] == [0, 1]
    assert [image["name"] for image in played.views[-1]["images"]] == ["real", "imagined", "real 0", "imagined 0"]
    assert played.do("select", branch=0)["branch"] == 0
    assert len(played.do("close", branch=1)["branches"]) == 1
    assert played.do("branch", index=2)["cursor"] == 2
    assert played.do("reality")["depth"] == 0


def test_impossible_commands_are_answered_and_end_nothing(played: Played) -> None:
    for name, values, message in [
        ("rewind", {"index": 99}, "no step 99"),
        ("select", {"branch": 9}, "no branch 9"),
        ("close", {"branch": 0}, "select another one"),
        ("drive", {"driver": "nobody"}, "no driver 'nobody'"),
        ("temperature", {"value": 11.0}, "must be 0 to 10"),
        ("start", {"source": "nowhere", "episode": 0, "step": 0}, "no episodes 'nowhere'"),
    ]:
        answer = played.do(name, **values)
        assert answer["kind"] == "error" and message in answer["text"]
    with pytest.raises(UserError, match="2 numbers, not 3"):
        played.player.act([0.0, 0.0, 0.0], True, 1)
    assert played.do("reset", goal=3)["goal"] == 3


def test_the_end_of_the_episode_stops_time(played: Played) -> None:
    played.do("speed", value=1000.0)
    played.do("play", on=True)
    played.until(lambda: played.views[-1]["over"])
    assert not played.player.playing and played.step == LENGTH
    played.do("step")
    played.until(lambda: bool(played.said))
    assert "the real episode is over" in played.said[0]["text"]


def test_saved_sessions_are_named_to_the_browser(played: Played, tmp_path: Path) -> None:
    played.do("step")
    played.until(lambda: played.step == 2)
    answer = played.do("save")
    assert answer["kind"] == "saved" and Path(answer["path"]).parent == tmp_path and answer["steps"] == 2
    answer = played.do("video")
    assert answer["kind"] == "video" and (tmp_path / answer["name"]).stat().st_size > 0


class RightDriver(Driver):
    resets = 0

    def __call__(self, session: Session) -> Any:
        return np.asarray(RIGHT, np.float32)

    def reset(self) -> None:
        self.resets += 1


def test_hand_over_and_take_back(tmp_path: Path) -> None:
    made = parts(tmp_path)
    driver = made.drivers["policy"] = RightDriver()
    with playing(made) as played:
        played.player.act([-1.0, 0.0], False, 1)
        assert played.do("drive", driver="policy")["playing"]
        played.until(lambda: played.step >= 4)
        view = played.do("drive", driver="you")
    assert (view["driver"], view["playing"], view["action"]) == ("you", False, RIGHT) and driver.resets >= 2


def test_drivers_forget_where_the_session_goes_to_another_moment(tmp_path: Path) -> None:
    made = parts(tmp_path)
    real, imagined = made.drivers["policy"], made.drivers["imagined"] = RightDriver(), RightDriver()
    imagined.imagined = True
    with playing(made) as played:
        for name in ("step", "branch", "reality"):
            played.do(name, **({"index": 1} if name == "branch" else {}))
    assert (real.resets, imagined.resets) == (1, 2)


def test_a_policy_that_takes_over_recalls_the_newest_steps() -> None:
    made, policy, given = session(), WanderingPolicy(), []
    policy.recall = given.append  # type: ignore[method-assign, assignment]
    driver = PolicyDriver(Acting(policy, make_env(resolution=SIDE).observation_spec), 3, imagined=False)
    for move in ([0.5, 0.0], [0.0, 0.5], STILL):
        driver(made)
        driver.reset()
        made.step(move)
    actions = ([STILL] * 3, [STILL, [0.5, 0.0], STILL], [[0.5, 0.0], [0.0, 0.5], STILL])
    for history, rows, taken in zip(given, ([0, 0, 1], [0, 1, 2], [1, 2, 3]), actions, strict=True):
        assert history["action"].tolist() == [taken]
        assert (history["pixels"][0].numpy() == [made.moments[row].real["pixels"] for row in rows]).all()
        assert (history["initial"].numpy() == made.moments[0].real["pixels"]).all()


def test_commands_that_wait_are_bounded(played: Played) -> None:
    holding = threading.Event()
    played.player.submit(Command("save", {}), lambda message: holding.wait(PATIENCE) and None)
    refused = 0
    for _ in range(4 * MAX_WAITING):
        try:
            played.player.submit(Command("step", {}), lambda message: None)
        except UserError as error:
            refused += "busy" in str(error)
    holding.set()
    assert refused >= 2 * MAX_WAITING


def test_a_defect_ends_the_thread_and_is_raised(tmp_path: Path) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a defect")

    made = parts(tmp_path)
    made.session.step = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a defect"), playing(made) as played:
        played.player.submit(Command("step", {}), lambda message: None)
        assert played.failed.wait(PATIENCE)


def test_errors_of_loading_are_raised_by_start() -> None:
    def load() -> Parts:
        raise UserError("no such run")

    with pytest.raises(UserError, match="no such run"):
        Player(load, print, print, print).start()


def test_views_name_their_pictures(played: Played) -> None:
    played.do("step")
    played.until(lambda: played.step == 2)
    view = played.views[-1]
    assert view["traces"].keys() == {"real", "imagined", "doubt"} and len(view["traces"]["real"]) == 2
    assert view["first"] == 1 and view["anchors"] == [[1, "real"]] and played.parts.session.model.resolution == SIDE
