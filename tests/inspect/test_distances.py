"""Attention distance and entropy: golden values and limits."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect.distances import attention_distance, attention_entropy


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_distance_of_uniform_attention_is_golden(prefix):
    n = 196 + prefix
    found = attention_distance(np.full((2, n, n), 1 / n), (14, 14), (16, 16))
    np.testing.assert_allclose(found, 116.492, atol=5e-4)


def test_distance_of_identity_attention_is_zero():
    assert attention_distance(np.eye(7), (2, 3), (4, 2)) == 0


def test_distance_in_rectangles_of_patches_that_are_not_square():
    # Both patches read each other only: one is a row of 4 pixels away, or a column of 2
    swap = np.array([[0.0, 1], [1, 0]])
    assert attention_distance(swap, (2, 1), (4, 2)) == 4
    assert attention_distance(swap, (1, 2), (4, 2)) == 2


def test_rows_without_weight_on_patches_do_not_count():
    weights = np.array([[1.0, 0, 0], [1, 0, 0], [0.5, 0.5, 0]])
    assert attention_distance(weights, (1, 2), (4, 2)) == 2


def test_grid_of_another_model():
    with pytest.raises(UserError, match="4 tokens, fewer than the 6 patches"):
        attention_distance(np.eye(4), (2, 3), (4, 2))


def test_entropy():
    assert attention_entropy(np.eye(3)) == 0
    uniform = np.full((197, 197), 1 / 197)
    np.testing.assert_allclose(attention_entropy(uniform), 5.2832, atol=5e-5)
    row = np.array([[0.6, 0.3, 0.1]])
    np.testing.assert_allclose(attention_entropy(row), 0.897946, atol=5e-7)
