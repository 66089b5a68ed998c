"""Imagined rollouts: decoding with key/value caches."""
