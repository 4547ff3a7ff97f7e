"""CKA: golden values, invariances, batches."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect.similarity import LayerSimilarity, cka, layer_similarity

X = np.array([[1.0, 0], [0, 1], [1, 1], [2, 0]])
Y = np.array([[1.0, 2], [0, 1], [1, 0], [3, 1]])


def test_golden_values():
    np.testing.assert_allclose(cka(X, Y), 0.898365, atol=5e-7)
    np.testing.assert_allclose(layer_similarity(X[None], Y[None]), 0.866025, atol=5e-7)


def test_rotation_and_scale_change_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12, 5))
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    np.testing.assert_allclose(cka(3 * x @ rotation, y), cka(x, y))
    found = layer_similarity((3 * x @ rotation)[None], np.stack([x, y]))
    expected = layer_similarity(x[None], np.stack([x, y]))
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose([cka(x, x), found[0, 0]], 1)


def test_hsics_are_averaged_over_batches_before_the_ratio():
    rng = np.random.default_rng(1)
    (a, c), (b, d) = rng.normal(size=(2, 2, 1, 6, 3))
    both = LayerSimilarity()
    both.add(a, b)
    both.add(10 * c, d)
    # A scale of ten gives the second batch nearly all the weight of the first features.
    mean = (layer_similarity(a, b) + layer_similarity(c, d)) / 2
    assert abs(both.result() - mean) > 0.01
    twice = LayerSimilarity()
    twice.add(a, b)
    twice.add(a, b)
    np.testing.assert_allclose(twice.result(), layer_similarity(a, b))


def test_too_few_images():
    with pytest.raises(UserError, match="at least 4 images in each batch, found 3"):
        layer_similarity(X[None, :3], Y[None, :3])
    with pytest.raises(UserError, match="of 4 and of 3 images"):
        layer_similarity(X[None], Y[None, :3])
    with pytest.raises(UserError, match="no images"):
        LayerSimilarity().result()
