"""Metrics of predicted videos and of what decides control."""
