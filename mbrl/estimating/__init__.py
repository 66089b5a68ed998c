"""What a run will cost, from a short measurement on this machine."""
