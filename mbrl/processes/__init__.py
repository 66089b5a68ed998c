"""Processes of a run: they end together, stop when asked, and say which one died."""
