"""Speed measurements of a recipe on this machine: `python -m vit_jax.benchmark`."""
