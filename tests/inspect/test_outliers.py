"""Outliers among the norms of tokens."""

import numpy as np

from vit_jax.inspect.outliers import outliers


def test_one_outlier_by_the_relative_rule():
    # Norms 1 … 12 in the first layer; in the second the last is 100 instead.
    norms = np.stack([np.arange(1.0, 13)] * 2)
    norms[1, -1] = 100
    patches = np.zeros((1, 2, 3, 4, 2))
    patches[..., 0] = 0.6 * norms.reshape(1, 2, 3, 4)
    patches[..., 1] = 0.8 * norms.reshape(1, 2, 3, 4)
    prefix = np.full((1, 2, 5, 2), 500.0)
    first, second = outliers(patches, prefix)
    assert not first.outliers.any()
    # The median is 6.5 and the median of the distances to it is 3, in both layers.
    np.testing.assert_allclose(second.threshold, 6.5 + 5 * 1.4826 * 3)
    np.testing.assert_array_equal(np.argwhere(second.outliers), [[0, 2, 3]])
    np.testing.assert_allclose([first.share, second.share], [0, 1 / 12])
    np.testing.assert_allclose(second.ratio, 100 / 6.5)
    np.testing.assert_allclose(second.prefix_norms, 500 * np.sqrt(2))
    assert [first.layer, second.layer] == [0, 1]
