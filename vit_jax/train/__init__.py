"""One training run: the optimiser, the pure update, the loop around it."""
