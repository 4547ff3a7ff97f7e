"""Pointing into boxes, on a grid of 2 × 3 patches of 4 × 2 pixels."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect.pointing import pointing

MAP = np.array([[[0.0, 1, 2], [0, 5, -9]]])


def test_a_box_of_whole_and_half_patches():
    inside = pointing(MAP, np.array([[2, 4, 4, 8]]), (8, 6))
    assert inside.hit.tolist() == [True]
    np.testing.assert_allclose(inside.share, 5 / 8)
    # The right half of the middle column: centers at x = 3 are in, all of y.
    half = pointing(MAP, np.array([[3, 0, 6, 8]]), (8, 6))
    assert half.hit.tolist() == [True]
    np.testing.assert_allclose(half.share, (0.5 + 2.5 + 2) / 8)
    outside = pointing(MAP, np.array([[0, 0, 6, 4]]), (8, 6))
    assert outside.hit.tolist() == [False]
    np.testing.assert_allclose(outside.share, 3 / 8)


def test_a_map_without_positive_values_has_no_share():
    assert np.isnan(
        pointing(-np.ones((1, 2, 3)), np.array([[0, 0, 6, 8]]), (8, 6)).share
    ).all()


def test_boxes_are_checked():
    with pytest.raises(UserError, match="right ≤ 6"):
        pointing(MAP, np.array([[0, 0, 7, 8]]), (8, 6))
    with pytest.raises(UserError, match=r"expected \(1, 4\)"):
        pointing(MAP, np.array([0, 0, 6, 8]), (8, 6))
