"""Batches of examples: order, reading, padding, masks."""
