"""Agents: when each part learns, imagination, planning, cloning."""
