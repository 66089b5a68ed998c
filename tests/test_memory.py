"""Freed memory is kept: large tensors one after another cost no page faults."""

import resource
import sys

import pytest
import torch

from mbrl.memory import keep_freed_memory

PAGES = 5000  # of a tensor


def faults(times: int) -> int:
    """Page faults of so many tensors, each let go of before the next."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(PAGES * 1024).fill_(1.0)  # 4 KiB a page
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_large_tensors_are_fetched_once() -> None:
    keep_freed_memory()
    faults(2)
    assert faults(10) < PAGES
