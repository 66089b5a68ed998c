"""One thread a process: two of OpenMP's on busy cores are ten times slower, and no faster here on quiet ones."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

import absl.logging

# rliable's logging takes hold of the stderr it finds and closes it when Hydra sets logging up anew: here that would be
# the one that pytest captures
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__
