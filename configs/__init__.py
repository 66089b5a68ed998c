"""The configuration files. This makes the folder a package, so that it is installed beside `mbrl`."""
