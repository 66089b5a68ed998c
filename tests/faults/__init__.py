"""Faults on purpose: kills, I/O errors, damaged files and planted code, each with what the command makes of it."""

import os

# before torch is imported: threads that it has started do not outlive a fork, and who waits for them waits for ever
os.environ["OMP_NUM_THREADS"] = "1"
