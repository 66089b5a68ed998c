"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections import deque

from tqdm import tqdm

BAR = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} env steps [{elapsed}{postfix}]"
REFRESH_SECONDS = 0.5
LINE_SECONDS = 30.0
RATE_SECONDS = 30.0


class Progress:
    """Shows env steps, success, updates per second and the time left on stderr.

    Rates are those of the last half minute, as random steps at the start are much faster than learning.

    Args:
        total: env steps of the whole run. start: env steps that were done before (a resumed run).
        may_lack_success: whether the environment need not report success; the return is shown until it has.
    """

    def __init__(self, total: int, start: int = 0, *, may_lack_success: bool = False) -> None:
        self._total, self._steps, self._updates = total, start, 0
        self._lacks_success, self._newest = may_lack_success, ""
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=start,
            bar_format=BAR,
            file=sys.stderr,
            disable=not self._terminal,
            leave=True,
        )
        self._began = self._shown = time.monotonic()
        self._samples: deque[tuple[float, int, int]] = deque([(self._began, start, 0)])

    def tick(self) -> None:
        """Counts one gradient step."""
        self._updates += 1
        self._show_if_due()

    def advance(self, env_steps: int, success: float | None = None, returned: float = 0.0) -> None:
        """Takes in how many env steps are done in all, and the newest success rate and return where there are any."""
        self._steps = env_steps
        if success is not None:
            self._lacks_success &= success == 0
            self._newest = f"return {returned:.1f}" if self._lacks_success else f"success {success:.2f}"
        self._show_if_due()

    def close(self) -> None:
        self._show(time.monotonic())
        self._bar.close()

    def describe(self, now: float) -> str:
        """Success or return, updates per second and time left, as far as each is known."""
        began, steps, updates = self._samples[0]
        seconds = max(now - began, 1e-9)
        parts = [self._newest] if self._newest else []
        parts.append(f"{(self._updates - updates) / seconds:.1f} updates/s")
        pace = (self._steps - steps) / seconds
        parts.append(f"{tqdm.format_interval((self._total - self._steps) / pace)} left" if pace > 0 else "? left")
        return ", ".join(parts)

    def _show_if_due(self) -> None:
        now = time.monotonic()
        if now - self._shown >= (REFRESH_SECONDS if self._terminal else LINE_SECONDS):
            self._show(now)

    def _show(self, now: float) -> None:
        self._shown = now
        if self._terminal:
            self._bar.n = self._steps
            self._bar.set_postfix_str(self.describe(now))
        else:
            elapsed = tqdm.format_interval(now - self._began)
            line = f"{self._steps}/{self._total} env steps, {elapsed}, {self.describe(now)}"
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        self._samples.append((now, self._steps, self._updates))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_SECONDS:
            self._samples.popleft()
