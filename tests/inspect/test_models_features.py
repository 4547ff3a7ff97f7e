"""Norms and similarities of a model's own features."""

import numpy as np
import pytest

from vit_jax.inspect import cka, layer_similarity, model_outliers


@pytest.mark.parametrize("fields", [{}, {"registers": 2}, {"mixer": True}])
def test_norms_of_a_models_tokens(fields, make_model, make_images):
    model = make_model(**fields)
    images = make_images(model)
    features = model.features(images, (0, 1))
    prefix = model.architecture.num_prefix_tokens
    for layer, found in enumerate(model_outliers(model, images)):
        patches = np.asarray(features.patches)[:, layer]
        expected = np.sqrt((patches.astype(np.float64) ** 2).sum(axis=-1))
        np.testing.assert_allclose(found.norms, expected, rtol=1e-5)
        assert found.norms.shape == (2, *model.architecture.grid)
        assert found.prefix_norms.shape == (2, prefix)


def test_similarity_of_a_models_layers(make_model, make_images):
    model = make_model()
    features = model.features(make_images(model, count=6), (0, 1)).patches
    layers = np.moveaxis(np.asarray(features), 1, 0).reshape(2, 6, -1)
    found = layer_similarity(layers, layers)
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-6)
    np.testing.assert_allclose(found, found.T, rtol=1e-6)
    assert found[0, 1] < 0.99
    assert cka(layers[0], 3 * layers[0]) == pytest.approx(1, rel=1e-6)
