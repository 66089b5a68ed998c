"""Faults on purpose: kills, I/O errors, damaged files and planted code, each with what the command makes of it."""
