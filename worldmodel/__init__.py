"""Models that predict: they know no reinforcement learning, and import neither policies nor mbrl."""
