"""Writes reduced_google.npz: Google's format, as ViT-B_16.npz has it, but very small.

    python tests/golden/make_reduced_google.py

reduced_recipes.json fine-tunes from it. Random numbers stand for the trained ones.
"""

import pathlib

import jax
import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture, abstract_params
from vit_jax.weights.saving import save_weights


def main():
    """The command; see the module's docstring."""
    architecture = Architecture(
        width=32,
        depth=2,
        mlp_dim=64,
        num_heads=2,
        patch_size=(4, 4),
        image_size=(8, 8),
        num_classes=21,
        pre_logits=32,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32),
        abstract_params(architecture),
    )
    plain = to_plain(default_config())
    description = Description(architecture, Preprocessing((8, 8)), (), plain, step=0)
    path = pathlib.Path(__file__).with_name("reduced_google.npz")
    save_weights(description, params, path, "google")


if __name__ == "__main__":
    main()
