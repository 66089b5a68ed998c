"""Types of settings: what an annotation of a parameter allows, and whether a value is allowed."""
