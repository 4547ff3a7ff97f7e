"""Rollout, gradient rollout and relevance of matrices, and rollout of models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect import (
    attention_rollout,
    fuse_heads,
    gradient_rollout,
    read_map,
    relevance,
    rollout,
)
from vit_jax.inspect.rollout import averaged, discarded

A1 = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]
A2 = [[0.5, 0.25, 0.25], [0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]
TWO_LAYERS = np.array([[[A1], [A2]]], np.float32)  # [1, 2, 1, 3, 3]


def random_weights(b=2, layers=3, heads=2, n=7, seed=0):
    scores = np.random.default_rng(seed).normal(size=(b, layers, heads, n, n))
    return np.asarray(jax.nn.softmax(jnp.asarray(scores, jnp.float32), axis=-1))


def random_gradients(weights, seed=1):
    return np.random.default_rng(seed).normal(size=weights.shape).astype(np.float32)


def test_rollout_of_two_layers():
    found = rollout(TWO_LAYERS)
    np.testing.assert_allclose(found[0, 0], [0.61875, 0.2125, 0.16875], rtol=1e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)


def test_relevance_of_two_layers():
    found = relevance(TWO_LAYERS, np.ones_like(TWO_LAYERS))
    np.testing.assert_allclose(found[0, 0], [2.475, 0.85, 0.675], rtol=1e-6)
    # Where the gradient is negative, nothing is added.
    none = relevance(TWO_LAYERS, -np.ones_like(TWO_LAYERS))
    np.testing.assert_array_equal(none[0], np.eye(3))


def test_relevance_takes_the_positive_part_before_the_mean_over_heads():
    weights = np.tile(TWO_LAYERS, (1, 1, 2, 1, 1))
    signs = np.array([1, -1], np.float32).reshape(1, 1, 2, 1, 1)
    found = relevance(weights, signs * np.ones_like(weights))
    half = relevance(TWO_LAYERS, np.full_like(TWO_LAYERS, 0.5))
    np.testing.assert_allclose(found, half, rtol=1e-6)
    # Gradient rollout takes it after the mean, which is zero here.
    found = gradient_rollout(weights, signs * np.ones_like(weights))
    np.testing.assert_array_equal(found[0], np.eye(3))


def test_attention_to_oneself_is_the_identity():
    weights = np.tile(np.eye(4, dtype=np.float32), (1, 5, 2, 1, 1))
    np.testing.assert_array_equal(rollout(weights)[0], np.eye(4))


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_uniform_attention(layers):
    n = 6
    found = rollout(np.full((1, layers, 3, n, n), 1 / n, np.float32))
    expected = (1 - 2.0**-layers) / n + 2.0**-layers * np.eye(n)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_fusions_of_heads():
    weights = np.array([[[0.2, 0.8], [0.5, 0.5]], [[0.6, 0.4], [0.1, 0.9]]], np.float32)
    for fusion, expected in {
        "mean": [[0.4, 0.6], [0.3, 0.7]],
        "max": [[0.6, 0.8], [0.5, 0.9]],
        "min": [[0.2, 0.4], [0.1, 0.5]],
    }.items():
        found = fuse_heads(weights[None, None], fusion)
        np.testing.assert_allclose(found, [[expected]], rtol=1e-6)
    with pytest.raises(UserError, match="fusion='sum': choose from mean, max, min"):
        fuse_heads(weights, "sum")


def test_rows_are_divided_by_their_own_sums():
    # Rows sum to 1.5 and 0.5. Columns divided by these would give rows of other sums.
    fused = np.array([[[0.5, 1.0], [0.3, 0.2]]], np.float32)
    found = averaged(fused)
    np.testing.assert_allclose(found[0], [[0.6, 0.4], [0.2, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.5, 0.9])
def test_rows_sum_to_one(fusion, discard):
    found = rollout(random_weights(), fusion=fusion, discard=discard, prefix=1)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)


def test_the_smallest_weights_of_each_image_are_discarded():
    fused = random_weights(b=3)[:, 0, 0]
    found = discarded(fused, 0.4, prefix=1)
    for image, before in zip(np.asarray(found), fused, strict=True):
        gone = np.argwhere(image == 0)
        assert len(gone) == 14  # ⌊0.4 · 36⌋ of the weights between 6 patches
        order = np.argsort(before[1:, 1:], axis=None)[:14]
        expected = np.stack(np.unravel_index(order, (6, 6)), axis=1) + 1
        np.testing.assert_array_equal(sorted(gone.tolist()), sorted(expected.tolist()))
        np.testing.assert_array_equal(image[image > 0], before[image > 0])


@pytest.mark.parametrize("discard", [0.0, 0.6])
def test_an_image_has_the_same_result_in_any_batch(discard):
    weights = random_weights(b=3)
    how = {"fusion": "max", "discard": discard, "prefix": 1}
    together = rollout(weights, **how)
    for i in range(3):
        alone = rollout(weights[i : i + 1], **how)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-6)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_weights_of_other_tokens_are_never_discarded(prefix):
    fused = random_weights()[:, 0, 0]
    found = np.asarray(discarded(fused, 1.0, prefix))
    np.testing.assert_array_equal(found[:, :prefix], fused[:, :prefix])
    np.testing.assert_array_equal(found[:, :, :prefix], fused[:, :, :prefix])
    assert not found[:, prefix:, prefix:].any()


def test_equal_weights_at_the_limit_are_kept():
    fused = np.full((1, 5, 5), 0.2, np.float32)
    np.testing.assert_array_equal(discarded(fused, 0.9, 1), fused)


def test_a_row_without_weights_stays_zero():
    found = averaged(
        np.ones((1, 3, 3), np.float32), discard=1.0, residual=0.0, prefix=0
    )
    np.testing.assert_array_equal(found, np.zeros((1, 3, 3)))


def test_share_of_the_residual():
    np.testing.assert_allclose(rollout(TWO_LAYERS, residual=1.0)[0], np.eye(3))
    without = rollout(TWO_LAYERS, residual=0.0)[0]
    np.testing.assert_allclose(without, np.array(A2) @ A1, rtol=1e-6)


def test_the_first_layer_of_the_product():
    weights = random_weights()
    gradients = random_gradients(weights)
    for start, layers in ((1, [1, 2]), (-1, [2]), (2, [2])):
        np.testing.assert_array_equal(
            rollout(weights, start=start), rollout(weights[:, layers])
        )
        np.testing.assert_array_equal(
            relevance(weights, gradients, start),
            relevance(weights[:, layers], gradients[:, layers]),
        )
    with pytest.raises(UserError, match="start=3: there are 3 layers; expected an ind"):
        rollout(weights, start=3)


def test_permuting_patches_permutes_the_matrix():
    weights = random_weights()
    gradients = random_gradients(weights)
    order = np.array([0, 4, 2, 6, 1, 5, 3])

    def permuted(x):
        return np.asarray(x)[..., order, :][..., order]

    for function in (
        lambda w, g: rollout(w, discard=0.5, prefix=1),
        lambda w, g: gradient_rollout(w, g, discard=0.5, prefix=1),
        relevance,
    ):
        np.testing.assert_allclose(
            function(permuted(weights), permuted(gradients)),
            permuted(function(weights, gradients)),
            rtol=1e-5,
            atol=1e-7,
        )


def test_gradient_rollout_is_its_formula():
    weights = random_weights()
    gradients = random_gradients(weights)
    expected = np.eye(7)
    for i in range(3):
        fused = np.maximum((weights[0, i] * gradients[0, i]).mean(axis=0), 0)
        mixed = fused / 2 + np.eye(7) / 2
        expected = mixed / mixed.sum(axis=1, keepdims=True) @ expected
    found = gradient_rollout(weights, gradients)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_gradients_of_other_layers_give_another_result():
    weights = random_weights()
    gradients = random_gradients(weights)
    for function in (gradient_rollout, relevance):
        paired, reversed_ = (
            np.asarray(function(weights, g)) for g in (gradients, gradients[:, ::-1])
        )
        assert np.abs(paired - reversed_).max() > 0.05


@pytest.mark.parametrize("name", ["discard", "residual"])
def test_shares_have_a_range(name):
    with pytest.raises(UserError, match=rf"{name}=1.5: expected a share from 0 to 1"):
        rollout(TWO_LAYERS, prefix=1, **{name: 1.5})
    with pytest.raises(UserError, match="discard needs prefix=…, the number of tokens"):
        rollout(TWO_LAYERS, discard=0.5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"registers": 3, "pooling": "gap"},
        {"distillation_token": True},
        {"pooling": "cls_gap", "registers": 1},
        {"prompts": 3},
        {"prompts": 3, "prompts_deep": True},
    ],
)
@pytest.mark.parametrize("how", [{}, {"fusion": "max", "discard": 0.4, "start": 1}])
def test_rollout_of_a_model(fields, how, make_model, make_images):
    model = make_model(**fields)
    images = make_images(model)
    found = attention_rollout(model, images, **how)
    a = model.architecture
    whole = rollout(model.attention(images), prefix=a.num_prefix_tokens, **how)
    assert found.shape == (2, 2, 3)
    np.testing.assert_allclose(found, read_map(whole, a), rtol=1e-5, atol=1e-7)
    one = attention_rollout(model, images, token=4, **how)
    np.testing.assert_allclose(one, read_map(whole, a, token=4), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_rollout_through_a_map_head(fusion, make_model, make_images):
    model = make_model(pooling="map", registers=1)
    images = make_images(model)
    found = attention_rollout(model, images, fusion=fusion)
    _, inside = model.module.apply(
        {"params": model.params}, images, intermediates=("map_attention",)
    )
    shares = {"mean": np.mean, "max": np.max}[fusion](inside["map_attention"], axis=1)
    shares = shares / shares.sum(axis=1, keepdims=True)
    matrix = rollout(model.attention(images), fusion=fusion)[:, 2:, 2:]
    expected = np.einsum("bi,bij->bj", shares, matrix).reshape(2, 2, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rows_of_a_prompted_model_are_normalised(make_model, make_images):
    model = make_model(prompts=4)
    images = make_images(model)
    weights = np.asarray(model.attention(images))
    assert weights.sum(axis=-1).max() < 0.99
    np.testing.assert_allclose(rollout(weights).sum(axis=-1), 1, rtol=1e-5)


def test_how_the_model_computes_does_not_matter(make_model, make_images):
    model = make_model()
    images = make_images(model)
    expected = attention_rollout(model, images)
    for fields in (
        {"dropout_rate": 0.5, "stochastic_depth": 0.5},
        {"attention": "xla"},
        {"attention": "per_head", "scan": True, "remat": "full"},
    ):
        model.module = model.module.clone(**fields)
        found = attention_rollout(model, images)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_mixer_has_no_rollout(make_model, make_images):
    model = make_model(mixer=True)
    with pytest.raises(
        UserError, match="MLP-Mixer, which has no attention: use grad_c"
    ):
        attention_rollout(model, make_images(model))
