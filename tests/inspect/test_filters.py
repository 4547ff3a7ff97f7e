"""Principal components of patch filters: planted ones, and those of models."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect.filters import filter_components, patch_filters


def planted(scales, shape, d=40, seed=0):
    """Makes filters of orthonormal components with these deviations, and a mean."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    components = np.linalg.qr(rng.normal(size=(size, len(scales))))[0]
    scores = rng.normal(size=(d, len(scales)))
    scores = np.linalg.qr(scores - scores.mean(axis=0))[0] * scales
    kernel = components @ scores.T + rng.normal(size=(size, 1))
    return components.T.reshape(-1, *shape), kernel.reshape(*shape, d)


def test_planted_components():
    components, kernel = planted([3.0, 2, 1], (4, 2, 3))
    found = filter_components(kernel, 5)
    assert found.components.shape == (5, 4, 2, 3)
    np.testing.assert_allclose(found.shares, [9 / 14, 4 / 14, 1 / 14, 0, 0], atol=1e-12)
    for component, picture in zip(components, found.components[:3], strict=True):
        largest = component.ravel()[np.abs(component).argmax()]
        component = component * np.sign(largest)
        low, high = component.min(), component.max()
        np.testing.assert_allclose(picture, (component - low) / (high - low), atol=1e-9)
        assert picture.max() == 1 and picture.min() == 0
        assert high >= -low  # the largest entry is positive


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_pictures_of_their_own(channels):
    _, kernel = planted([3.0, 2], (4, 2, channels))
    found = filter_components(kernel, 2).components
    np.testing.assert_array_equal(found.min(axis=(1, 2)), 0)
    np.testing.assert_array_equal(found.max(axis=(1, 2)), 1)


def test_filters_that_do_not_vary():
    found = filter_components(np.ones((1, 1, 3, 4)), 1)
    np.testing.assert_array_equal(found.shares, 0)
    assert np.isfinite(found.components).all()
    # One pixel of one channel has nothing to vary over.
    assert filter_components(np.arange(4.0).reshape(1, 1, 1, 4), 1).components == 0.5


@pytest.mark.parametrize("fields", [{}, {"mixer": True}, {"channels": 1}])
def test_filters_of_a_model(fields, make_model):
    model = make_model(**fields)
    found = patch_filters(model, 7)
    expected = filter_components(model.params["patch_embed"]["kernel"], 7)
    np.testing.assert_array_equal(found.components, expected.components)
    assert found.components.shape == (7, 4, 2, model.architecture.channels)
    assert (np.diff(found.shares) <= 0).all() and 0.5 < found.shares.sum() <= 1


def test_filters_of_a_flexible_model(make_model):
    model = make_model(
        flexible_kernel=(6, 6), flexible_grid=(2, 3), flexible_resize="linear"
    )
    assert patch_filters(model, 3).components.shape == (3, 4, 2, 3)


def test_wrong_arguments(make_model):
    with pytest.raises(UserError, match=r"a hybrid, .* its filters are not pictures"):
        patch_filters(make_model(trunk=(), patch_size=(8, 4), image_size=(16, 12)))
    with pytest.raises(UserError, match="count=28: 16 filters of 24 numbers have 16 c"):
        patch_filters(make_model())
    with pytest.raises(UserError, match=r"count=0: .* from 1 to 16"):
        patch_filters(make_model(), 0)
