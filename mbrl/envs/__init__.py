"""Environments under one set of keys: Meta-World, the toy, and (imagined) any world model."""
