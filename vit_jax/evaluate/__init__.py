"""Exact evaluation, in training and as `python -m vit_jax.evaluate`."""
