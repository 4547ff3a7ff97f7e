"""Tiny models in which every dimension differs: a grid of 2 × 3, 2 heads, 2 blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture, MixerArchitecture, abstract_params, build

SIZES = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 2, "num_classes": 5}
MIXER = {"width": 16, "depth": 2, "mlp_dim": 24, "tokens_mlp_dim": 10, "num_classes": 5}
INPUTS = {"patch_size": (4, 2), "image_size": (8, 6)}


@pytest.fixture(scope="session")
def make_model():
    """Returns a function of fields of the architecture that makes a random model."""

    def make(*, mixer=False, seed=0, outputs="", **fields):
        kind, sizes = (MixerArchitecture, MIXER) if mixer else (Architecture, SIZES)
        a = kind(**(sizes | INPUTS | fields))
        rng = np.random.default_rng(seed)

        def draw(path, leaf):  # none zero or one, so that all of them matter
            scales = path[-1].key in ("scale", "layer_scale1", "layer_scale2")
            return jnp.asarray(rng.normal(scales, 0.3, leaf.shape), leaf.dtype)

        return vit_jax.Model(
            build(a),
            jax.tree.map_with_path(draw, abstract_params(a)),
            Preprocessing(a.image_size, a.channels),
            (),
            to_plain(default_config()),
            0,
            outputs=outputs,
        )

    return make


@pytest.fixture(scope="session")
def make_images():
    """Returns a function that draws images for a model."""

    def images(model, count=2, seed=7):
        a = model.architecture
        rng = np.random.default_rng(seed)
        shape = (count, *a.image_size, a.channels)
        return rng.uniform(-1, 1, size=shape).astype(np.float32)

    return images
