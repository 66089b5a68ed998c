"""Faults on purpose, and what commands make of them: kills, I/O errors, damaged files, planted code, malformed data."""

import os

# before torch is imported: threads that it has started do not outlive a fork, and who waits for them waits for ever
os.environ["OMP_NUM_THREADS"] = "1"
