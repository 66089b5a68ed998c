"""A page in the browser that steers the imagined world beside the real simulator."""
