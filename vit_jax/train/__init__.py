"""One training run: its setup, the pure update, the loop, reports and processes."""
