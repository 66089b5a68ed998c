"""How the process keeps the memory that it has freed."""

from __future__ import annotations

import ctypes

# mallopt's names for its settings, from malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks for the next ones instead of giving them back to the system.

    Otherwise each large tensor is fetched from the system anew, page by page: 20 thousand page faults in an update of
    DrQ-v2 at batch 128, a quarter of its time. Nothing is done where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_MMAP_MAX, 0)  # no block by itself
