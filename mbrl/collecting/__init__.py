"""Environment interaction: the collector, evaluation, recorded demonstrations and data sets."""
