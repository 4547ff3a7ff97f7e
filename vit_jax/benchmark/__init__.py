"""How fast a recipe runs here: `python -m vit_jax.benchmark`."""
