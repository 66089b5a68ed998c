"""One thread a process: two of OpenMP's on busy cores are ten times slower, and no faster here on quiet ones."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
