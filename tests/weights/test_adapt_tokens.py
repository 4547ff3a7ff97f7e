"""Positions, pooling and norm of pretrained weights, as fine-tuning changes them."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import Architecture, abstract_params, build
from vit_jax.models.positions import resize, sincos2d
from vit_jax.weights.adapt import adapt

# The encoder of a masked autoencoder: fixed positions, none for the class token.
ENCODER = Architecture(
    width=16,
    depth=1,
    mlp_dim=24,
    num_heads=2,
    patch_size=(4, 4),
    image_size=(8, 12),
    num_classes=0,
    class_token_position=False,
    posemb="sincos2d",
    sincos_denominator="mae",
    gelu="exact",
)
FINE_TUNED = dataclasses.replace(
    ENCODER,
    num_classes=5,
    pooling="gap",
    norm="after_pool",
    posemb="learned",
    sincos_denominator="big_vision",
    class_token_position=True,
)


def random(architecture, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
        abstract_params(architecture),
    )


def changed(architecture, **fields):
    return dataclasses.replace(architecture, **fields)


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_masked_autoencoder_is_fine_tuned_from_the_mean_of_the_patches(caplog):
    weights = random(ENCODER)
    with caplog.at_level(logging.WARNING):
        found = adapt(weights, ENCODER, FINE_TUNED, head_std=2e-5, seed=3)
    positions = sincos2d((2, 3), 16, "mae")
    equal(found["pos_embed"], positions)
    equal(found["pos_embed_prefix"], np.zeros((1, 1, 16), np.float32))
    norm = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
    equal(found["norm"], norm)
    assert 1e-5 < found["head"]["kernel"].std() < 3e-5
    assert not found["head"]["bias"].any()
    kept = weights.keys() - {"norm"}
    equal({k: found[k] for k in kept}, {k: weights[k] for k in kept})
    assert [line.removeprefix("pretrained weights: ") for line in caplog.messages] == [
        "the fixed sin-cos positions become learned ones",
        "the class token gets a position of zeros",
        "the head reads the mean of the patches instead of the class token",
        "the final norm, trained before pooling, replaced by a new one after it",
        "the head replaced by a new one with random values of deviation 2e-05: 0 "
        "classes before, 5 now",
    ]


def test_the_first_logits_are_those_of_the_published_head():
    """Computes global pooling as MAE does: the mean of all but the first, then fc_norm.

    The head is given by the test, because a new one is nearly zero.
    """
    weights, rng = random(ENCODER), np.random.default_rng(5)
    found = adapt(weights, ENCODER, FINE_TUNED)
    found["head"]["kernel"] = rng.standard_normal((16, 5)).astype(np.float32)
    images = rng.uniform(-1, 1, (3, 8, 12, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        logits = build(FINE_TUNED).apply({"params": found}, images)
        _, given = build(ENCODER).apply(
            {"params": weights}, images, intermediates=("tokens",)
        )
    pooled = np.asarray(given["tokens"], np.float64)[:, -1, 1:].mean(1)
    pooled -= pooled.mean(1, keepdims=True)
    pooled /= np.sqrt((pooled**2).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(logits, pooled @ found["head"]["kernel"], atol=1e-5)


def test_the_class_token_keeps_its_norm():
    weights = random(ENCODER)
    target = changed(FINE_TUNED, pooling="cls", norm="before_pool")
    found = adapt(weights, ENCODER, target)
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(found["norm"][name], weights["norm"][name])
    np.testing.assert_array_equal(found["pos_embed"], sincos2d((2, 3), 16, "mae"))


@pytest.mark.parametrize("denominator", ["mae", "big_vision"])
@pytest.mark.parametrize("position", [False, True])
def test_learned_positions_begin_with_the_same_tokens(denominator, position):
    source = changed(ENCODER, sincos_denominator=denominator)
    weights = random(source)
    target = changed(source, posemb="learned", class_token_position=position)
    found = adapt(weights, source, target)
    assert ("pos_embed_prefix" in found) == position
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    before, after = (
        build(a).apply({"params": p}, images, method="embed")
        for a, p in ((source, weights), (target, found))
    )
    np.testing.assert_array_equal(before, after)


def test_positions_for_another_grid_are_resized_from_the_trained_one():
    target = changed(FINE_TUNED, image_size=(20, 16))
    found = adapt(random(ENCODER), ENCODER, target, posemb_resize="bicubic_torch")
    expected = resize(sincos2d((2, 3), 16, "mae"), (5, 4), "bicubic_torch")
    np.testing.assert_allclose(found["pos_embed"], expected, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"registers": 2},
        {"registers": 2, "register_positions": True},
        {"distillation_token": True, "registers": 2, "register_positions": True},
    ],
)
@pytest.mark.parametrize("position", [False, True])
def test_positions_of_the_class_token_come_and_go_without_a_change(fields, position):
    """DeiT III has none; its weights serve a model that has, and the other way."""
    learned = changed(
        ENCODER, posemb="learned", class_token_position=not position, **fields
    )
    weights = random(learned)
    target = changed(learned, class_token_position=position)
    found = adapt(weights, learned, target)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    before, after = (
        build(a).apply({"params": p}, images, method="embed")
        for a, p in ((learned, weights), (target, found))
    )
    np.testing.assert_allclose(before, after, atol=2e-6)


def test_a_new_norm_or_pooling_needs_a_new_head():
    source = changed(ENCODER, num_classes=5)
    weights = random(source)
    for fields, name in (
        ({"pooling": "gap"}, "pooling: 'cls' in the weights, 'gap' in the model"),
        (
            {"pooling": "gap", "norm": "after_pool"},
            "norm: 'before_pool' in the weights, 'after_pool' in the model",
        ),
    ):
        with pytest.raises(UserError, match=name):
            adapt(weights, source, changed(source, **fields))
        adapt(weights, source, changed(source, **fields), keep_head=False)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({}, {"class_token": False, "pooling": "gap"}, "class_token: True in the weig"),
        ({"pooling": "gap", "norm": "after_pool"}, {}, "norm: 'after_pool' in the wei"),
        ({}, {"sincos_denominator": "big_vision"}, "sincos_denominator: 'mae' in the"),
        ({"posemb": "learned"}, {}, "posemb: 'learned' in the weights"),
        ({}, {"pooling": "map"}, "pooling: 'cls' in the weights, 'map' in the model"),
    ],
)
def test_what_cannot_be_converted_is_refused(source, target, message):
    source, target = changed(ENCODER, **source), changed(ENCODER, **target)
    with pytest.raises(UserError, match=message) as error:
        adapt(random(source), source, changed(target, num_classes=5))
    hint = "To keep the class token beside another pooling, set model.class_token=on."
    assert (hint in str(error.value)) == (not target.class_token)


def test_a_random_head_depends_on_the_seed_alone():
    weights = random(ENCODER)

    def kernel(**options):
        found = adapt(weights, ENCODER, FINE_TUNED, head_std=0.02, **options)
        return found["head"]["kernel"]

    equal(kernel(seed=1), kernel(seed=1))
    assert np.abs(kernel(seed=1) - kernel(seed=2)).max() > 0.01
