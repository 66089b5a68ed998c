"""Folders of episodes: recorded, read in four layouts, mixed and augmented."""
