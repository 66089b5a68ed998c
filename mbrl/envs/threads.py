"""Environments that are stepped at the same time, in threads of this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from torchrl.envs import EnvBase

Result = TypeVar("Result")


class EnvThreads:
    """Environments, the first in the caller's thread and each further one in a thread of its own.

    MuJoCo lets other threads run while it simulates and draws, which is nine tenths of an agent step with pixels. An
    OpenGL context belongs to one thread: an environment is made, stepped and closed in the same one.

    Args:
        first: the environment of the caller's thread, which stays the caller's to close.
        make_env: makes the further environments, one after the other.
        count: environments, 1 or more.
    """

    def __init__(self, first: EnvBase, make_env: Callable[[], EnvBase], count: int) -> None:
        self._threads: list[ThreadPoolExecutor] = []
        self.envs = [first]
        for number in range(1, count):
            thread = ThreadPoolExecutor(1, f"env-{number}")
            try:
                self.envs.append(thread.submit(make_env).result())
            except BaseException:
                thread.shutdown()
                self.close()
                raise
            self._threads.append(thread)

    def each(self, function: Callable[[int], Result]) -> list[Result]:
        """Results of `function` for each environment's number, called in that environment's thread.

        The first error is raised, when all have ended.
        """
        others = [thread.submit(function, number) for number, thread in enumerate(self._threads, start=1)]
        try:
            first = function(0)
        finally:
            wait(others)
        return [first, *(future.result() for future in others)]

    def close(self) -> None:
        """Close the further environments, and end their threads."""
        for thread, env in zip(self._threads, self.envs[1:], strict=True):
            thread.submit(env.close).result()
            thread.shutdown()
        self._threads, self.envs = [], self.envs[:1]
