"""The files of a run: written as it trains, and read back."""
