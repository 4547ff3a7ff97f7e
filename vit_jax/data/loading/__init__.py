"""From examples to batches: order, reading, padding, masks."""
