"""Counters in checkpoints, which a host reads without waiting for a GPU."""

from torch import Tensor


class HostCounter:
    """Counts in a buffer int64 0-d of a module, and caches its value on the host.

    Reading a number from a GPU waits for all earlier work on it. So the buffer is read only after something else has
    written to it, such as a loaded checkpoint or a move to another device. Writes to shared memory by another process
    are not noticed.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._version = self._value = 0

    def value(self, buffer: Tensor) -> int:
        """The value of the buffer."""
        if self._buffer is not buffer or self._version != buffer._version:
            self._buffer, self._version, self._value = buffer, buffer._version, int(buffer)
        return self._value

    def add_one(self, buffer: Tensor) -> int:
        """Add 1 to the buffer and return the new value."""
        value = self.value(buffer) + 1
        buffer += 1
        self._version, self._value = buffer._version, value
        return value
