"""The configuration files (Hydra reads them as the package `configs`, also from an installed copy)."""
