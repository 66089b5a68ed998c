"""Learning curves, figures, reports, and the state of runs."""
