"""Freed memory is kept: large tensors one after another cost no page faults."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

PAGES = 9000  # of a tensor, more than the 32 MiB from which glibc always asks the system
# in a process of its own, as a run is: what a long one has done before decides where its blocks lie
FAULTS = f"""
import resource, torch
from mbrl.malloc import keep_freed_memory

def tensors(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.empty({PAGES} * 1024).fill_(1.0)  # 4 KiB a page
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
tensors(20)  # until the heap has settled
print(tensors(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keeps freed memory by settings of glibc")
def test_large_tensors_are_fetched_once() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < PAGES
