"""Processes that train together, signals, and the detection of hangs."""
