"""Mean attention distance and entropy: known values, and those of models."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect import arguments
from vit_jax.inspect.distances import (
    attention_distance,
    attention_entropy,
    attention_statistics,
    patch_distances,
)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_known_distances(prefix):
    n = prefix + 14 * 14
    uniform = np.full((2, n, n), 1 / n)
    found = attention_distance(uniform, (14, 14), (16, 16))
    assert found.shape == (2,)
    np.testing.assert_allclose(found, 116.492, atol=5e-4)
    assert attention_distance(np.eye(n), (14, 14), (16, 16)) == 0
    assert patch_distances((14, 14), (16, 16)).max() == pytest.approx(294.156, abs=1e-3)


def test_sides_of_patches_count_by_themselves():
    # Patches of 4 × 2 pixels on a grid of 2 × 3; each reads the last one.
    weights = np.zeros((8, 8))
    weights[:, 7] = 0.25
    weights[:, 0] = 0.75  # is not a patch
    rows = [np.hypot(4 * (1 - y), 2 * (2 - x)) for y in range(2) for x in range(3)]
    found = attention_distance(weights, (2, 3), (4, 2))
    assert found == pytest.approx(np.mean(rows))


def test_a_patch_that_reads_no_patch_is_not_counted():
    weights = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])  # of a token and 2 patches
    assert attention_distance(weights, (1, 2), (3, 5)) == 5
    assert attention_distance(np.eye(3)[[0, 0, 0]], (1, 2), (3, 5)) == 0


def test_known_entropies():
    assert attention_entropy(np.array([[0.6, 0.3, 0.1]])) == pytest.approx(0.897946)
    assert attention_entropy(np.eye(197)) == 0
    uniform = np.full((197, 197), 1 / 197)
    assert attention_entropy(uniform) == pytest.approx(5.2832, abs=5e-5)
    # Half of the weight is that of other tokens, such as prompts.
    assert attention_entropy(uniform / 2) == pytest.approx(np.log(197))


KINDS = {
    "class token": {"depth": 3},
    "registers": {"registers": 2, "distillation_token": True},
    "mean": {"pooling": "gap", "class_token": False, "class_token_position": False},
    "prompts": {"prompts": 2},
}


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_statistics_of_a_model(fields, make_model, make_images, monkeypatch):
    model = make_model(**fields)
    images, a = make_images(model, 3), model.architecture
    found = attention_statistics(model, images)
    weights = np.asarray(model.attention(images))
    distance = attention_distance(weights, (2, 3), (4, 2)).mean(axis=0)
    assert found.distance.shape == (a.depth, 2)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-5)
    np.testing.assert_allclose(found.share, distance / np.sqrt(8 * 6), rtol=1e-5)
    entropy = attention_entropy(weights).mean(axis=0)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-5)
    # Few images at a time, the last ones once more.
    monkeypatch.setattr(arguments, "_BYTES", 2 * 4 * 2 * a.num_tokens**2)
    np.testing.assert_allclose(
        attention_statistics(model, images).distance, distance, rtol=1e-5
    )


def test_wrong_arguments(make_model, make_images):
    with pytest.raises(UserError, match="5 tokens cannot be that of a grid of 2x3"):
        attention_distance(np.eye(5), (2, 3), (4, 2))
    mixer = make_model(mixer=True)
    with pytest.raises(UserError, match="MLP-Mixer, which has no attention"):
        attention_statistics(mixer, make_images(mixer))
    model = make_model()
    with pytest.raises(UserError, match="no images to average over"):
        attention_statistics(model, make_images(model, 0))
