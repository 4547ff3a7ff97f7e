"""Processes that train together, signals, and what makes a run hang."""
