"""Time and memory of a run, estimated from a short measurement on this machine."""
