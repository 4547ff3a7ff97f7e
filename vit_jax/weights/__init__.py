"""Weights to start from or to use: read, recognised, adapted to another model."""
