"""Metrics of predicted videos, and world-model metrics for control."""
