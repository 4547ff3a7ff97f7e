"""Maps under random weights, and the rank correlation."""

import jax
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect import MAPS
from vit_jax.inspect.randomised import randomised, rank_correlation, sanity_check


def test_rank_correlation_is_spearmans():
    a = np.array([[[1.0, 2, 3, 4]], [[1, 2, 3, 4]], [[1, 1, 1, 1]]])
    b = np.array([[[10.0, 20, 40, 30]], [[9, 5, 2, 1]], [[1, 2, 3, 4]]])
    # 1 − 6 Σd² / (n (n² − 1)) = 1 − 12 / 60.
    np.testing.assert_allclose(rank_correlation(a, b), [0.8, -1, np.nan])
    with pytest.raises(UserError, match="expected equal ones"):
        rank_correlation(a, b[:2])


def test_layers_change_from_the_outputs_backwards_and_stay_changed(make_model):
    model = make_model(pooling="map")
    stages = list(randomised(model, seed=3))
    names = ["head", "map_head", "blocks_01", "blocks_00"]
    assert [name for name, _ in stages] == names
    for i, (_, changed) in enumerate(stages):
        for name, params in changed.params.items():
            same = jax.tree.map(
                lambda x, y: bool((x == y).all()), params, model.params[name]
            )
            assert all(jax.tree.leaves(same)) == (name not in names[: i + 1]), name
    # A head that starts at zeros would have no gradient.
    assert np.std(stages[0][1].params["head"]["kernel"]) > 0.1
    again = dict(randomised(model, seed=3))["blocks_00"]
    for x, y in zip(
        jax.tree.leaves(again.params),
        jax.tree.leaves(stages[-1][1].params),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def test_only_the_class_specific_map_reacts_to_a_random_head(make_model, make_images):
    model = make_model(image_size=(16, 12))
    images = make_images(model)
    done = []
    attention = sanity_check(
        MAPS["attention"].compute, model, images, progress=done.append
    )
    assert attention.stages == ("head", "blocks_01", "blocks_00")
    assert attention.correlations.shape == (3, 2)
    np.testing.assert_allclose(attention.correlations[0], 1)
    assert (attention.correlations[1:] < 0.9).all()
    assert done == [1, 1, 1]
    relevance = sanity_check(MAPS["relevance"].compute, model, images)
    assert (relevance.correlations[0] < 0.99).all()
