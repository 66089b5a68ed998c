"""World models, independent of reinforcement learning; the package imports neither policies nor mbrl."""
