"""Weights and their gradients, targets, and the maps that are made of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from vit_jax.errors import UserError
from vit_jax.inspect import (
    MAPS,
    arguments,
    attention_rollout,
    away_from,
    cosine_to,
    gradient_rollout,
    gradient_rollout_maps,
    read_map,
    relevance,
    relevance_maps,
    weights_and_gradients,
)

NO_CLASS_TOKEN = {"class_token": False, "class_token_position": False}
KINDS = {
    "class token": {"depth": 3},
    "registers": {"registers": 2, "pooling": "gap", **NO_CLASS_TOKEN},
    "both": {"pooling": "cls_gap"},
    "distilled": {"distillation_token": True},
    "map": {"pooling": "map", "registers": 1},
    "normed after pooling": {"pooling": "gap", "norm": "after_pool", "pre_logits": 7},
    "prompts": {"prompts": 3},
    "deep prompts": {"prompts": 3, "prompts_deep": True, "layer_scale": True},
    "hybrid": {"trunk": (), "patch_size": (4, 8), "image_size": (8, 24)},
}


@functools.partial(jax.jit, static_argnums=(0, 4))
def whole(module, params, images, classes, names):
    """Weights and gradients by the definition: zeros added inside the whole model."""

    def logit(added):
        logits, found = module.apply(
            {"params": params}, images, intermediates=names, added=added
        )
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), found

    shapes = jax.eval_shape(
        lambda: module.apply({"params": params}, images, intermediates=names)[1]
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradients, found = jax.grad(logit, has_aux=True)(zeros)
    return found, gradients


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_block_by_block_as_in_the_whole_model(fields, make_model, make_images):
    model = make_model(**fields)
    images, a = make_images(model), model.architecture
    maps = ("map_attention",) if a.pooling == "map" else ()
    classes = jnp.array([3, 1])
    found, wanted = whole(
        model.module, model.params, images, classes, ("attention", *maps)
    )
    weights, gradients = weights_and_gradients(model, images, [3, 1])
    np.testing.assert_allclose(weights, found["attention"], rtol=1e-4, atol=1e-6)
    largest = np.abs(wanted["attention"]).max(axis=(0, 2, 3, 4), keepdims=True)
    difference = np.abs(gradients - wanted["attention"]) / largest
    assert difference.max() < 2e-5, difference.max(axis=(0, 2, 3, 4))

    # The maps are those of the pure functions of the whole arrays.
    pooling = [None, None]
    if maps:
        product = found["map_attention"] * wanted["map_attention"]
        pooling = [
            np.maximum(product, 0).mean(axis=1),
            np.maximum(product.mean(axis=1), 0),
        ]
    prefix = a.num_prefix_tokens
    for computed, matrix, shares in (
        (relevance_maps, relevance(weights, gradients), pooling[0]),
        (
            gradient_rollout_maps,
            gradient_rollout(weights, gradients, prefix=prefix),
            pooling[1],
        ),
    ):
        image_maps = computed(model, images, [3, 1])
        assert image_maps.shape == (2, *a.grid)
        expected = np.asarray(read_map(matrix, a, shares))
        assert expected.max() > 0
        np.testing.assert_allclose(
            image_maps, expected, rtol=1e-3, atol=1e-4 * expected.max()
        )


def test_gradients_are_those_of_their_own_layer(make_model, make_images):
    model = make_model()
    images = make_images(model)
    _, gradients = weights_and_gradients(model, images, 2)
    # Raise one weight of one layer: the logit rises by its gradient.
    for layer, head, i, j in ((0, 1, 4, 2), (0, 0, 0, 3), (1, 0, 0, 5), (1, 1, 0, 0)):
        step = np.zeros(gradients.shape, np.float32)
        step[1, layer, head, i, j] = 1e-2
        up, down = (
            model.module.apply(
                {"params": model.params},
                images,
                added={"attention": jnp.asarray(sign * step)},
            )[1, 2]
            for sign in (1, -1)
        )
        expected = float(up - down) / 2e-2
        found = float(gradients[1, layer, head, i, j])
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-4)
        assert abs(gradients[1, 1 - layer, head, i, j] - found) > 3e-4
    # In the last layer, only what the class token reads matters.
    assert not gradients[:, 1, :, 1:].any()
    assert gradients[:, 0, :, 1:].any()


def test_a_scaled_target_scales_the_gradients(make_model, make_images):
    model = make_model()
    images = make_images(model)
    weights, once = weights_and_gradients(model, images, lambda x: x.logits[:, 1])
    same, scaled = weights_and_gradients(model, images, lambda x: 3 * x.logits[:, 1])
    _, index = weights_and_gradients(model, images, 1)
    np.testing.assert_array_equal(weights, same)
    np.testing.assert_allclose(scaled, 3 * once, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(index, once, rtol=1e-5, atol=1e-7)


def test_classes_change_relevance_but_not_rollout(make_model, make_images):
    model = make_model()
    images = make_images(model)
    for name, kind in MAPS.items():
        one, other = (np.asarray(kind.compute(model, images, c)) for c in (0, 3))
        change = np.abs(one - other).max() / np.abs(one).max()
        if kind.class_specific:
            assert change > 0.05, name
        else:
            assert change == 0, name


def test_the_predicted_class_is_the_default(make_model, make_images):
    model = make_model()
    images = make_images(model, 4)
    predicted = np.argmax(np.asarray(model(images)), axis=1)
    assert len(set(predicted)) > 1
    for compute in (relevance_maps, gradient_rollout_maps):
        np.testing.assert_array_equal(
            compute(model, images), compute(model, images, predicted)
        )


def test_an_image_has_the_same_map_in_any_batch(make_model, make_images, monkeypatch):
    model = make_model(pooling="map")
    images, classes = make_images(model, 5), np.array([4, 0, 1, 2, 3])
    reference = np.random.default_rng(3).normal(size=(5, 16)).astype(np.float32)
    made = [(kind.compute, classes) for kind in MAPS.values()]
    targets = (cosine_to(reference), away_from(reference[0]), None)
    made += [(relevance_maps, target) for target in targets]
    together = [compute(model, images, target) for compute, target in made]
    # Two images at a time: targets of images go with them.
    monkeypatch.setattr(arguments, "_BYTES", 2 * 4 * 2 * 7 * 7)
    apart = [compute(model, images, target) for compute, target in made]
    for one, other in zip(together, apart, strict=True):
        assert one.shape == (5, 2, 3)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_start_is_the_first_layer(make_model, make_images):
    model = make_model(depth=3)
    images = make_images(model)
    both = weights_and_gradients(model, images, 1)
    a = model.architecture
    found = relevance_maps(model, images, 1, start=-1)
    expected = read_map(relevance(*both, start=2), a)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    how = {"start": 1, "discard": 0.3, "residual": 0.2}
    found = gradient_rollout_maps(model, images, 1, **how)
    expected = gradient_rollout(*both, prefix=1, **how)
    np.testing.assert_allclose(found, read_map(expected, a), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="start=3: there are 3 layers; expected an"):
        relevance_maps(model, images, 1, start=3)


@pytest.mark.parametrize("pooling", ["cls", "gap", "map"])
def test_moving_patches_moves_the_maps(pooling, make_model, make_images):
    model = make_model(pooling=pooling)
    model.params["pos_embed"] = jnp.zeros_like(model.params["pos_embed"])
    images = make_images(model)
    order = np.array([3, 0, 5, 1, 4, 2])
    patches = images.reshape(2, 2, 4, 3, 2, 3).swapaxes(2, 3).reshape(2, 6, 4, 2, 3)
    moved = patches[:, order].reshape(2, 2, 3, 4, 2, 3).swapaxes(2, 3)
    moved = moved.reshape(images.shape)
    for name, kind in MAPS.items():
        before, after = (
            np.asarray(kind.compute(model, x, [1, 2])).reshape(2, 6)
            for x in (images, moved)
        )
        assert np.ptp(before) > 1e-3, name
        np.testing.assert_allclose(
            after, before[:, order], rtol=1e-3, atol=1e-5, err_msg=name
        )


def test_targets_of_models_without_classes(make_model, make_images):
    model = make_model(num_classes=0)
    images = make_images(model)
    features = model(images)
    # Nothing raises the cosine to itself.
    _, gradients = weights_and_gradients(model, images, cosine_to(features))
    assert np.abs(gradients).max() < 1e-5
    blank = model(jnp.zeros((1, 8, 6, 3)))[0]
    _, gradients = weights_and_gradients(model, images, away_from(blank))
    assert np.abs(gradients).max() > 1e-3
    _, opposite = weights_and_gradients(model, images, cosine_to(blank))
    np.testing.assert_allclose(opposite, -gradients, rtol=1e-4, atol=1e-7)

    def cosine(outputs):
        assert outputs._fields == ("logits", "pooled", "pre_logits")
        x = outputs.pre_logits
        norms = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(blank)
        return -x @ blank / norms

    _, own = weights_and_gradients(model, images, cosine)
    np.testing.assert_allclose(own, gradients, rtol=1e-4, atol=1e-6)
    # By default, the length; its gradient is that of the product with itself.
    _, default = weights_and_gradients(model, images)
    directions = features / jnp.linalg.norm(features, axis=1, keepdims=True)
    product = Partial(lambda x, outputs: (x * outputs.pre_logits).sum(1), directions)
    _, expected = weights_and_gradients(model, images, product)
    np.testing.assert_allclose(default, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(default).max() > 1e-3
    with pytest.raises(UserError, match="this model has no classes: as target pass a"):
        weights_and_gradients(model, images, 0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, r"target=\[5\]: the model has 5 classes; expected indices from 0 to 4"),
        ([0, -1], r"target=\[-1\]: the model has 5 classes"),
        ([0, 1, 2], "one for each of 2 images"),
        (0.5, "target=0.5: expected the index of a class"),
        ("cat", "target='cat': expected the index of a class"),
        (lambda x: x.logits, r"the target has shape \(2, 5\); expected \(2,\)"),
        (Partial(lambda x: x.logits.sum()), r"has shape \(\); expected \(2,\)"),
    ],
)
def test_wrong_targets(target, message, make_model, make_images):
    model = make_model()
    with pytest.raises(UserError, match=message):
        relevance_maps(model, make_images(model), target)


def test_plain_numbers_have_no_largest_class(make_model, make_images):
    model = make_model(outputs="numbers")
    images = make_images(model)
    with pytest.raises(UserError, match="outputs are plain numbers, so it predicts no"):
        relevance_maps(model, images)
    assert relevance_maps(model, images, 4).shape == (2, 2, 3)


def test_a_mixer_has_no_attention(make_model, make_images):
    model = make_model(mixer=True)
    images = make_images(model)
    for compute in (relevance_maps, gradient_rollout_maps, weights_and_gradients):
        with pytest.raises(UserError, match="MLP-Mixer, which has no attention"):
            compute(model, images, 0)


def test_the_table_of_maps(make_model, make_images):
    model = make_model()
    images = make_images(model)
    assert list(MAPS) == [
        *("attention", "rollout", "gradient_rollout", "relevance"),
        *("grad_cam", "hires_cam", "eigen_cam"),
    ]
    for kind in MAPS.values():
        # Maps that no class can change say so.
        assert ("class-agnostic" in kind.caption) == (not kind.class_specific)
        assert kind.caption.endswith(".")
        assert kind.compute(model, images, None).shape == (2, 2, 3)
    np.testing.assert_array_equal(
        MAPS["rollout"].compute(model, images, 1), attention_rollout(model, images)
    )
    attention = np.asarray(model.attention(images))[:, -1, :, 0, 1:].mean(axis=1)
    np.testing.assert_allclose(
        MAPS["attention"].compute(model, images, 1),
        attention.reshape(2, 2, 3),
        rtol=1e-5,
    )
