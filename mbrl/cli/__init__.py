"""The command line, `mbrl`."""
