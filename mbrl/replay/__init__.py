"""The replay buffer of a run."""
