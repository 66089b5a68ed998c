"""Policies and planners. They import no world model and no environment."""
