"""Composes world models and policies into agents: the only package where the two meet."""
