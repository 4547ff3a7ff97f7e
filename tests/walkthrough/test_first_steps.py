"""Tests of the patch embedding as a matrix, and of what positions do."""

import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from vit_jax.errors import UserError
from vit_jax.models import MixerArchitecture
from vit_jax.walkthrough import (
    patch_embedding_as_matrix,
    shuffled,
    without_positions,
)

FLEXIBLE = {"flexible_kernel": (6, 6)}


@pytest.fixture
def load(make_teacher):
    """Returns a function of architecture fields that makes a model and images."""

    def make(**fields):
        size = {"image_size": (8, 12), "patch_size": (4, 2)}
        if "architecture" not in fields:
            fields = size | fields
        model = vit_jax.load(make_teacher(**fields))
        a = model.architecture
        shape = (2, *a.image_size, a.channels)
        rng = np.random.default_rng(1)
        return model, jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)

    return make


MIXER = MixerArchitecture(16, 1, 10, 24, (4, 2), (8, 12), 10)


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": 1},
        {"posemb": "sincos2d", "class_token_position": False},
        {"posemb": "sincos2d", "class_token_position": False, **FLEXIBLE},
        {"architecture": MIXER},
    ],
    ids=["learned", "fixed", "flexible", "mixer"],
)
def test_both_forms_of_the_patch_embedding(load, fields):
    model, images = load(**fields)
    found = patch_embedding_as_matrix(model, images)
    k = 4 * 2 * model.architecture.channels
    assert found.patches.shape == (2, 12, k) and found.matrix.shape == (k, 16)
    assert found.by_matrix.shape == found.by_convolution.shape == (2, 12, 16)
    assert found.difference < 1e-5
    # Not because there is nothing to compare.
    assert np.abs(found.by_matrix).max() > 0.1
    # The second patch of the second row, row by row, channels last.
    patch = np.asarray(images)[1, 4:8, 2:4].reshape(-1)
    np.testing.assert_array_equal(found.patches[1, 7], patch)
    by_hand = patch.astype(float) @ np.asarray(found.matrix) + np.asarray(found.bias)
    np.testing.assert_allclose(found.by_convolution[1, 7], by_hand, atol=1e-5)


def test_patches_of_features_are_refused(load):
    size = {"image_size": (32, 32), "patch_size": (16, 16), "trunk": ()}
    model, images = load(**size)
    with pytest.raises(UserError, match="from the features of a ResNet"):
        patch_embedding_as_matrix(model, images)


def test_images_of_another_size_are_refused(load):
    model, images = load()
    with pytest.raises(UserError, match=r"expected \(batch, height, width"):
        patch_embedding_as_matrix(model, images[:, :4])


def test_shuffling_moves_whole_patches():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    found = shuffled(images, (2, 3), seed=3)
    assert found.shape == images.shape and found.dtype == images.dtype
    assert isinstance(found, np.ndarray)

    def patches(images):
        return [images[:, y : y + 2, x : x + 3] for y in (0, 2) for x in (0, 3)]

    order = [
        [np.array_equal(new, old) for old in patches(images)].index(True)
        for new in patches(found)
    ]
    assert sorted(order) == [0, 1, 2, 3] != order
    np.testing.assert_array_equal(found, shuffled(jnp.asarray(images), (2, 3), seed=3))
    assert not np.array_equal(found, shuffled(images, (2, 3), seed=4))


@pytest.mark.parametrize(
    ("shape", "patch_size", "message"),
    [
        ((4, 6, 3), 2, r"expected \(batch, height, width, channels"),
        ((1, 4, 6, 3), 4, "4×6 pixels cannot be cut into patches of 4×4"),
        ((1, 4, 6, 3), "2", "patch_size='2'"),
        ((1, 4, 6, 3), 0, "cannot be cut"),
    ],
)
def test_what_cannot_be_shuffled(shape, patch_size, message):
    with pytest.raises(UserError, match=message):
        shuffled(np.zeros(shape), patch_size)


KINDS = {
    "class token": {},
    "registers": {"registers": 2, "register_positions": True},
    "gap": {"pooling": "gap", "class_token": False, "class_token_position": False},
    "map": {"pooling": "map", "class_token": False, "class_token_position": False},
    "fixed": {"posemb": "sincos2d", "class_token_position": False},
    "fixed and flexible": {
        "posemb": "sincos2d",
        "class_token_position": False,
        **FLEXIBLE,
    },
}


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS.keys())
def test_without_positions_the_order_of_patches_is_lost(load, fields):
    model, images = load(**fields)
    bare = without_positions(model)
    moved = shuffled(images, model.architecture.patch_size)
    assert np.abs(model(images) - model(moved)).max() > 1e-3
    np.testing.assert_allclose(bare(images), bare(moved), atol=1e-4)
    # The images still matter, and the model itself is as it was.
    assert np.abs(bare(images) - bare(-images)).max() > 1e-3
    assert np.abs(bare(images) - model(images)).max() > 1e-3
    for name in ("pos_embed", "pos_embed_prefix"):
        assert not np.any(bare.params.get(name, 0))
        assert name not in model.params or np.any(model.params[name])


def test_patches_of_a_mixer_have_places(load):
    model, _ = load(architecture=MIXER)
    with pytest.raises(UserError, match="MLP-Mixer has no positions to remove"):
        without_positions(model)
