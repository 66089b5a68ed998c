"""The command `mbrl` and its verbs."""
