"""Plays a session in a thread of its own: the newest input wins, and no queue grows."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mbrl.errors import UserError
from mbrl.play.drivers import Driver, find_driver
from mbrl.play.load import Parts
from mbrl.play.messages import Command
from mbrl.play.view import describe, encode, pictures_of

PERSON = "you"
MAX_WAITING = 8  # commands that wait for the thread; further ones are refused
PICTURES = 8  # of an episode to choose a step from
SMOOTHING = 0.1  # weight of the newest step in measured times
SPEED = 10.0  # steps per second, at first

Send = Callable[[bytes], None]  # takes a binary message, see `mbrl.play.view`


@dataclass(frozen=True)
class _Input:
    """Input of the person: `action`, and the tap since the last step, which is kept for the next one."""

    number: int = 0
    action: npt.NDArray[np.float32] | None = None
    tapped: npt.NDArray[np.float32] | None = None
    held: bool = False


class Player:
    """Steps a session while it plays, and carries out commands between steps.

    While time stands still, input steps the session: a tap one step, a held key as many as it is held for.

    Args:
        load: builds the parts; called in the thread, to which OpenGL is tied.
        publish: called in the thread with each view; only the newest one matters.
        notify: called in the thread with what every browser is to be told once.
        on_end: called when the thread ends; if it ends by an error, `close` raises that.
    """

    def __init__(self, load: Callable[[], Parts], publish: Send, notify: Send, on_end: Callable[[], None]) -> None:
        self._load, self._publish, self._notify, self._on_end = load, publish, notify, on_end
        self._waiting: queue.Queue[tuple[Command, Send]] = queue.Queue(MAX_WAITING)
        self._wake = threading.Condition()
        self._closed = False
        self._input, self._shown = _Input(), 0  # the newest input, and the number of the one in the newest step
        self.playing = self._single = False
        self.speed, self.driver, self._due = SPEED, PERSON, 0.0
        self._step_ms = self._interval_ms = 0.0
        self._stepped_at: float | None = None
        self._thread = ThreadPoolExecutor(1, "play")
        self._running: Future[None] | None = None

    def start(self) -> Parts:
        """Start the thread; returns the parts when they are built.

        Raises:
            Exception: whatever `load` raised.
        """
        self._parts = self._thread.submit(self._load).result()
        self._running = self._thread.submit(self._run)
        self._running.add_done_callback(lambda _: self._on_end())
        return self._parts

    def close(self) -> None:
        """End the thread and free the simulator.

        Raises:
            Exception: the thread ended by it.
        """
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.shutdown()
        if self._running is not None:
            self._running.result()

    def act(self, action: list[float], held: bool, number: int) -> None:
        """Take the newest input in the place of the one before.

        Args:
            action: [A] in [-1, 1].
            held: whether a control is held, which steps the session also while time stands still.
            number: of the input; views name the newest one that they contain.

        Raises:
            UserError: it has not A numbers.
        """
        width = self._parts.session.actions
        if len(action) != width:
            raise UserError(f"an action has {width} numbers, not {len(action)}")
        taken = np.asarray(action, np.float32)
        with self._wake:
            self._input = _Input(number, taken, taken if held else self._input.tapped, held)
            self._wake.notify()

    def release(self) -> None:
        """Let go of everything: the browser that steered has gone, and time stands still."""
        with self._wake:
            self._rest()
            self._wake.notify()

    def _rest(self) -> None:
        self._input, self._single, self.playing = _Input(self._input.number), False, False

    def submit(self, command: Command, reply: Send) -> None:
        """Have a command carried out after the current step.

        Args:
            command: any of `messages.COMMANDS` that is not about input or steering.
            reply: called in the thread with answers for the browser that asked.

        Raises:
            UserError: MAX_WAITING commands wait already.
        """
        try:
            self._waiting.put_nowait((command, reply))
        except queue.Full:
            raise UserError("busy with earlier commands: wait a moment") from None
        with self._wake:
            self._wake.notify()

    # ---------------------------------------------------------------- the thread
    def _run(self) -> None:
        try:
            self._publish(self._encode())
            while not self._closed:
                if self._turn():
                    self._publish(self._encode())
        finally:
            self._parts.close()

    def _turn(self) -> bool:
        """Carry out one command, take one step, or wait; returns whether there is something new to see."""
        try:
            command, reply = self._waiting.get_nowait()
        except queue.Empty:
            pass
        else:
            self._carry_out(command, reply)
            return True
        with self._wake:
            wait = self._due - time.monotonic()
            if not self._wants_step() or wait > 0:
                if self._waiting.empty() and not self._closed:
                    self._wake.wait(wait if self._wants_step() else None)
                return False
            given = self._input
            action = given.action if given.held or given.tapped is None else given.tapped
            self._input, self._single, self._shown = replace(given, tapped=None), False, given.number
        self._step(action)
        return True

    def _wants_step(self) -> bool:
        acts = self._input.held or self._input.tapped is not None
        return self.playing or self._single or (acts and self.driver == PERSON)

    def _step(self, action: npt.NDArray[np.float32] | None) -> None:
        session, start = self._parts.session, time.monotonic()
        self._due = start + 1 / self.speed
        try:
            if self.driver != PERSON:
                action = self._driver(self.driver)(session)
            session.step(np.zeros(session.actions, np.float32) if action is None else action)
        except UserError as error:
            self.release()
            self._notify(encode({"kind": "error", "text": str(error)}, []))
            return
        end = time.monotonic()
        self._step_ms = _smoothed(self._step_ms, 1000 * (end - start))
        if self._stepped_at is not None and end - self._stepped_at < 1:
            self._interval_ms = _smoothed(self._interval_ms, 1000 * (end - self._stepped_at))
        self._stepped_at = end
        if session.moment.over:
            self.release()

    def _driver(self, name: str) -> Driver:
        return find_driver(self._parts.drivers, name)

    def _carry_out(self, command: Command, reply: Send) -> None:
        try:
            answer = getattr(self, f"_do_{command.name}")(**command.values)
        except (UserError, OSError) as error:
            reply(encode({"kind": "error", "text": str(error)}, []))
            return
        if answer is not None:
            reply(answer)
        moved = command.name in ("reset", "rewind", "branch", "select", "start", "drive")
        for driver in self._parts.drivers.values():
            if moved or (driver.imagined and command.name == "reality"):
                driver.reset()

    # ---------------------------------------------------------------- commands
    def _do_play(self, on: bool) -> None:
        self.playing, self._due = on, 0.0

    def _do_step(self) -> None:
        self.playing, self._single, self._due = False, True, 0.0

    def _do_speed(self, value: float) -> None:
        self.speed = value

    def _do_temperature(self, value: float) -> None:
        self._parts.session.set_temperature(value)

    def _do_reset(self, goal: int | None) -> None:
        self._parts.session.reset(goal)

    def _do_rewind(self, index: int) -> None:
        self.playing = False
        self._parts.session.rewind(index)

    def _do_branch(self, index: int) -> None:
        self._parts.session.branch(index)

    def _do_select(self, branch: int) -> None:
        self._parts.session.select(branch)

    def _do_close(self, branch: int) -> None:
        self._parts.session.close_branch(branch)

    def _do_reality(self) -> None:
        self._parts.session.back_to_reality()

    def _do_drive(self, driver: str) -> None:
        if driver != PERSON:
            self._driver(driver)
        with self._wake:
            self._rest()
        self.driver, self.playing = driver, driver != PERSON

    def _do_pictures(self, source: str, episode: int) -> bytes:
        found = self._parts.library.pictures(source, episode, PICTURES)
        header = {"kind": "pictures", "source": source, "episode": episode, "steps": [step for step, _ in found]}
        return encode(header, [(str(step), picture) for step, picture in found])

    def _do_start(self, source: str, episode: int, step: int) -> None:
        self.playing = False
        self._parts.library.start(self._parts.session, source, episode, step)

    def _do_save(self) -> bytes:
        session = self._parts.session
        path = self._parts.recordings.save_episode(session.moments[: session.cursor + 1])
        return encode({"kind": "saved", "path": str(path), "steps": session.cursor}, [])

    def _do_video(self) -> bytes:
        session = self._parts.session
        moments = session.moments[: session.cursor + 1]
        path = self._parts.recordings.save_video(moments, max(1, round(self.speed)))
        return encode({"kind": "video", "name": path.name}, [])

    def _encode(self) -> bytes:
        header: dict[str, Any] = describe(self._parts.session)
        header |= {
            "input": self._shown,
            "playing": self.playing,
            "speed": self.speed,
            "driver": self.driver,
            "step_ms": round(self._step_ms, 1),
            "fps": round(1000 / self._interval_ms, 1) if self._interval_ms else None,
        }
        return encode(header, pictures_of(self._parts.session))


def _smoothed(before: float, value: float) -> float:
    return value if not before else before + SMOOTHING * (value - before)
