"""Imagined rollouts: decoding with KV caches."""
