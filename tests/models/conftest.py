"""A tiny architecture in which every dimension differs, and parameters for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import Architecture, MixerArchitecture, abstract_params


@pytest.fixture
def tiny():
    """Returns a function of the fields to change: grid 2×3, 2 heads of 8, 2 blocks."""

    def architecture(**changes):
        fields = {
            "width": 16,
            "depth": 2,
            "mlp_dim": 24,
            "num_heads": 2,
            "patch_size": (4, 2),
            "image_size": (8, 6),
            "num_classes": 5,
        }
        return Architecture(**(fields | changes))

    return architecture


@pytest.fixture
def tiny_mixer():
    """Returns a function of the fields to change, for a tiny MLP-Mixer."""

    def architecture(**changes):
        fields = {
            "width": 16,
            "depth": 2,
            "tokens_mlp_dim": 10,
            "mlp_dim": 24,
            "patch_size": (4, 2),
            "image_size": (8, 6),
            "num_classes": 5,
        }
        return MixerArchitecture(**(fields | changes))

    return architecture


@pytest.fixture
def random_images():
    def images(architecture, batch=2, seed=7):
        shape = (batch, *architecture.image_size, architecture.channels)
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.uniform(-1, 1, size=shape), jnp.float32)

    return images


@pytest.fixture
def random_params():
    """Returns a function that draws parameters, none zero or one, so all matter."""

    def params(architecture, seed=0):
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            scales = path[-1].key in ("scale", "layer_scale1", "layer_scale2")
            return jnp.asarray(rng.normal(scales, 0.3, leaf.shape), leaf.dtype)

        return jax.tree.map_with_path(draw, abstract_params(architecture))

    return params


@pytest.fixture
def equations():
    """Returns a function that lists a jaxpr's equations, inner functions included."""

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)

    return equations
