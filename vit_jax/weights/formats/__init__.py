"""Foreign formats of weights, one table each, and our own single-file format."""
