"""Files of weights, published and our own."""
