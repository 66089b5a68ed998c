"""Learning curves, aggregates over tasks, reports, and the state of runs."""
