"""MBPO's probabilistic ensemble."""
