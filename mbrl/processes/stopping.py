"""SIGTERM, which clusters send some time before they kill a job."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 20.0  # Slurm and Kubernetes kill 30 s after SIGTERM


def interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    """A signal handler that does what SIGINT does."""
    raise KeyboardInterrupt


class StopRequest:
    """Whether the run is to stop at the next moment at which nothing is lost."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Inside the block, SIGTERM asks to stop; if the run has not left after GRACE_SECONDS, it is interrupted.

        Outside the main thread, which alone receives signals, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask), signal.getsignal(signal.SIGALRM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # Whoever started the run may have blocked it.
        try:
            yield
        finally:
            if self.requested:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before[1])
            signal.signal(signal.SIGTERM, before[0])

    def _ask(self, signal_number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def leave(self) -> None:
        """End the run, as SIGINT does, if it is to stop.

        Raises:
            KeyboardInterrupt: it is.
        """
        if self.requested:
            raise KeyboardInterrupt
