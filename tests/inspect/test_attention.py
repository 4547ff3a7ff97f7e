"""Maps of the attention of one layer, and what is read from a matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect import arguments, attention_maps, read_map

NO_CLASS_TOKEN = {"class_token": False, "class_token_position": False}


@pytest.mark.parametrize(
    ("fields", "special", "patches"),
    [
        # The share of each token before the patches, and that of all patches.
        ({}, [1.0], 0.0),
        ({"registers": 2}, [1.0, 0, 0], 0.0),
        ({"distillation_token": True, "registers": 1}, [0.5, 0.5, 0], 0.0),
        ({"distillation_token": True, "distillation_head": False}, [1.0, 0], 0.0),
        ({"pooling": "gap", **NO_CLASS_TOKEN}, [], 1.0),
        ({"pooling": "gap", "registers": 2}, [0.0] * 3, 1.0),
        ({"pooling": "cls_gap", "registers": 2}, [0.5, 0, 0], 0.5),
    ],
)
def test_what_is_read_for_a_pooling(fields, special, patches, make_model):
    a = make_model(**fields).architecture
    p, n = len(special), len(special) + 6
    assert a.num_prefix_tokens == p
    matrix = np.random.default_rng(0).uniform(size=(2, n, n)).astype(np.float32)
    shares = np.array([*special, *[patches / 6] * 6])
    expected = np.einsum("i,bij->bj", shares, matrix)[:, p:].reshape(2, 2, 3)
    np.testing.assert_allclose(read_map(matrix, a), expected, rtol=1e-6)
    # One token, and matrices of several heads.
    several = np.stack([matrix, 2 * matrix], axis=1)
    found = read_map(several, a, token=n - 1)
    expected = several[:, :, n - 1, p:].reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(UserError, match=f"token={n}: expected an index from 0 to"):
        read_map(matrix, a, token=n)


def test_what_a_map_head_reads(make_model):
    a = make_model(pooling="map", registers=1, **NO_CLASS_TOKEN).architecture
    matrix = np.random.default_rng(0).uniform(size=(2, 7, 7)).astype(np.float32)
    shares = np.random.default_rng(1).uniform(size=(2, 6)).astype(np.float32)
    expected = np.einsum("bi,bij->bj", shares, matrix[:, 1:, 1:]).reshape(2, 2, 3)
    np.testing.assert_allclose(read_map(matrix, a, shares), expected, rtol=1e-6)
    with pytest.raises(UserError, match="with pooling map, pass map_attention"):
        read_map(matrix, a)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_weights_of_the_class_token(layer, make_model, make_images):
    model = make_model(registers=2)
    images = make_images(model)
    found = attention_maps(model, images, layer)
    weights = np.asarray(model.attention(images))[:, layer]
    expected = weights[:, :, 0, 3:].reshape(2, 2, 2, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        attention_maps(model, images, layer, 1), expected[:, 1], rtol=1e-5
    )
    for fusion, fuse in {"mean": np.mean, "max": np.max, "min": np.min}.items():
        np.testing.assert_allclose(
            attention_maps(model, images, layer, fusion),
            fuse(expected, axis=1),
            rtol=1e-5,
        )


def test_weights_of_another_token(make_model, make_images):
    model = make_model(distillation_token=True)
    images = make_images(model)
    weights = np.asarray(model.attention(images))[:, -1, :, :, 2:]
    both = weights[:, :, :2].mean(axis=2).reshape(2, 2, 2, 3)
    np.testing.assert_allclose(attention_maps(model, images), both, rtol=1e-5)
    for token in (0, 1, 5):
        found = attention_maps(model, images, token=token)
        expected = weights[:, :, token].reshape(2, 2, 2, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_of_a_map_head(make_model, make_images):
    model = make_model(pooling="map", registers=1, **NO_CLASS_TOKEN)
    images = make_images(model)
    _, inside = model.module.apply(
        {"params": model.params}, images, intermediates=("map_attention", "attention")
    )
    own = np.asarray(inside["map_attention"])
    found = attention_maps(model, images, "map_head")
    np.testing.assert_allclose(found, own.reshape(2, 2, 2, 3), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=(2, 3)), 1, rtol=1e-5)
    # In a block, its share of each patch's row.
    last = np.asarray(inside["attention"])[:, -1, :, 1:, 1:]
    expected = np.einsum("bi,bhij->bhj", own.mean(axis=1), last).reshape(2, 2, 2, 3)
    np.testing.assert_allclose(attention_maps(model, images), expected, rtol=1e-5)


def test_only_one_layer_is_asked_for(make_model, make_images, monkeypatch):
    model = make_model()
    asked = []
    attention = model.attention

    def spy(images, layers):
        asked.append((len(images), layers))
        return attention(images, layers)

    monkeypatch.setattr(model, "attention", spy)
    whole = attention_maps(model, make_images(model, 5), 1)
    # With little memory, few images at a time; the last ones once more.
    monkeypatch.setattr(arguments, "_BYTES", 2 * 4 * 2 * 7 * 7)
    found = attention_maps(model, make_images(model, 5), 1)
    assert asked == [(5, (1,)), *[(2, (1,))] * 3]
    np.testing.assert_allclose(found, whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": 2}, "head=2: expected an index from 0 to 1, mean, max, min, or None"),
        ({"head": "sum"}, "head='sum': expected an index from 0 to 1"),
        ({"head": True}, "head=True: expected an index"),
        ({"layer": 2}, r"layers \[2\]: the model has 2 blocks; expected indices from"),
        ({"layer": "last"}, r"layers \['last'\]: the model has 2 blocks"),
        ({"layer": "map_head"}, "head with pooling map, .* this model has pooling cls"),
        ({"token": 7}, "token=7: expected an index from 0 to 6; the first 1 are not"),
    ],
)
def test_wrong_arguments(arguments, message, make_model, make_images):
    model = make_model()
    with pytest.raises(UserError, match=message):
        attention_maps(model, make_images(model), **arguments)


def test_wrong_images_and_models(make_model, make_images):
    model = make_model()
    with pytest.raises(UserError, match=r"shape \(2, 6, 8, 3\).*model.prepare\(images"):
        attention_maps(model, np.zeros((2, 6, 8, 3), np.float32))
    with pytest.raises(UserError, match="uint8, expected floating point"):
        attention_maps(model, jnp.zeros((2, 8, 6, 3), jnp.uint8))
    mixer = make_model(mixer=True)
    with pytest.raises(UserError, match="MLP-Mixer, which has no attention"):
        attention_maps(mixer, make_images(mixer))
