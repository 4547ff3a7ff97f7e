"""One training run: the optimiser, the pure step, the loop around it."""

from vit_jax.train.setup import build as build
