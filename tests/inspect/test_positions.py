"""The similarity of positions: those of arrays, and those that models compute."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect.positions import patch_positions, position_similarity


def test_similarity_of_an_array():
    positions = np.array([[[1, 0], [2, 0], [0, 3]], [[-1, 0], [1, 1], [0, 0]]])
    found = position_similarity(positions)
    assert found.shape == (2, 3, 2, 3)
    half = np.sqrt(0.5)
    expected = [[1, 1, 0], [-1, half, 0]]
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-15)
    np.testing.assert_allclose(found[1, 1], [[half, half, half], [-half, 1, 0]])
    assert not found[1, 2].any()  # an embedding of zeros


KINDS = {
    "learned": {},
    "registers": {"registers": 2, "register_positions": True},
    "sin-cos": {"posemb": "sincos2d", "class_token_position": False},
    "sin-cos of MAE": {
        "posemb": "sincos2d",
        "class_token_position": False,
        "sincos_denominator": "mae",
    },
    "flexible": {"flexible_grid": (3, 5), "flexible_resize": "linear"},
}


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_positions_of_a_model(fields, make_model):
    if "flexible_grid" in fields:
        fields = fields | {"flexible_kernel": (3, 3)}
    model = make_model(**fields)
    a = model.architecture
    expected = model.module.apply(
        {"params": model.params}, a.grid, a, method="_positions"
    )[0]
    np.testing.assert_allclose(patch_positions(model), expected, rtol=1e-6)
    found = position_similarity(model)
    np.testing.assert_allclose(found, position_similarity(expected), atol=1e-6)
    # A patch is most similar to itself, and similarity is mutual.
    flat = found.reshape(6, 6)
    np.testing.assert_allclose(np.diag(flat), 1)
    np.testing.assert_allclose(flat, flat.T)
    assert flat[0, 1:].max() < 0.999


def test_no_positions(make_model):
    with pytest.raises(UserError, match="MLP-Mixer, which has no position embeddings"):
        position_similarity(make_model(mixer=True))
