"""`mbrl predict`: measure a world model on held-out segments of real episodes."""
