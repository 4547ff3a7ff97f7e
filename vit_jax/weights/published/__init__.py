"""Published weights: their names, their facts, their mirrors and the cache."""
