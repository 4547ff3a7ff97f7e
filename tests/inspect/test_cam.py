"""Class activation maps, against their formulas on the whole model's gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect import eigen_cam, grad_cam, hires_cam, normalized
from vit_jax.models.heads import MapHead

# Fields, where Grad-CAM and HiResCAM read tokens by default, and tokens before patches.
KINDS = {
    "class token": ({"depth": 3}, "norm1", "norm1", 1),
    "distilled": ({"depth": 3, "distillation_token": True}, "norm1", "norm1", 2),
    "mean": ({"pooling": "gap", "registers": 2}, "tokens", "normed", 3),
    "normed after": ({"pooling": "gap", "norm": "after_pool"}, "tokens", "tokens", 1),
    "both": ({"pooling": "cls_gap"}, "norm1", "norm1", 1),
    "map": ({"pooling": "map"}, "tokens", "normed", 1),
    "prompts": ({"depth": 3, "prompts": 2}, "norm1", "norm1", 1),
    "mixer": ({"mixer": True}, "tokens", "normed", 0),
}


def of_patches(model, images, classes, name, layer, prefix):
    """Values and gradients of patches in a layer [b, m, d], by the definition."""
    found = _whole(model.module, model.params, images, classes, name, layer)
    return (np.asarray(x)[:, 0, prefix:] for x in found)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _whole(module, params, images, classes, name, layer):
    variables, layers = {"params": params}, (layer,)
    _, found = module.apply(variables, images, intermediates=(name,), layers=layers)
    x = found[name]

    def chosen(logits):
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    if name == "normed":  # which the head reads: only the model's last layers follow
        p = module.architecture.num_prefix_tokens
        heads = {"params": {k: v for k, v in params.items() if "head" in k}}

        def logit(x):
            if getattr(module.architecture, "pooling", "gap") == "gap":
                return chosen(module.apply(heads, [x[:, p:].mean(1)], method="head")[0])
            return chosen(
                module.apply(heads, _map_pooled(module, params, x), method="head")[0]
            )

        return x[:, None], jax.grad(logit)(x)[:, None]

    def logit(added):
        return chosen(
            module.apply(variables, images, added={name: added}, layers=layers)
        )

    return x, jax.grad(logit)(jnp.zeros_like(x))


def _map_pooled(module, params, x):
    a = module.architecture
    head = MapHead(a.block)
    return [head.apply({"params": params["map_head"]}, x[:, a.num_prefix_tokens :])]


@pytest.mark.parametrize(
    ("fields", "grad_place", "hires_place", "prefix"), KINDS.values(), ids=KINDS
)
def test_maps_are_their_formulas(
    fields, grad_place, hires_place, prefix, make_model, make_images
):
    model = make_model(**fields)
    images, classes = make_images(model), jnp.array([3, 1])
    last = model.architecture.depth - 1
    for layer, place in ((last, None), (0, "tokens")):

        def arrays(default, layer=layer, place=place):
            name = place or default
            return of_patches(model, images, classes, name, layer, prefix)

        x, gradient = arrays(grad_place)
        weights = gradient.mean(axis=1, keepdims=True)
        cams = [(grad_cam, np.maximum((weights * x).sum(axis=2), 0))]
        centred = x - x.mean(axis=1, keepdims=True)
        x, gradient = arrays(hires_place)
        cams += [(hires_cam, (gradient * x).sum(axis=2))]
        for cam, expected in cams:
            found = cam(model, images, classes, layer, where=place)
            assert found.shape == (2, 2, 3)
            scale = np.abs(expected).max()
            assert scale > 1e-2
            np.testing.assert_allclose(
                found, expected.reshape(2, 2, 3), rtol=1e-3, atol=1e-4 * scale
            )
        found = np.asarray(eigen_cam(model, images, None, layer, where=place))
        for image, of_image in zip(centred, found.reshape(2, 6), strict=True):
            _, vectors = np.linalg.eigh(image.T @ image)
            expected = image @ vectors[:, -1]
            expected = expected * np.sign(expected[np.abs(expected).argmax()])
            np.testing.assert_allclose(of_image, expected, rtol=1e-3, atol=1e-4)
            assert of_image[np.abs(of_image).argmax()] > 0


@pytest.mark.parametrize("fields", [{"pooling": "gap"}, {"mixer": True}])
def test_a_norm_makes_the_length_of_tokens_irrelevant(fields, make_model, make_images):
    model = make_model(**fields)
    images = make_images(model)
    prefix = model.architecture.num_prefix_tokens
    x, gradient = of_patches(model, images, jnp.array([3, 1]), "tokens", 1, prefix)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose((x * gradient).sum(axis=2), np.zeros((2, 6)), atol=1e-5)
    with pytest.raises(
        UserError, match=r'read through a norm .* where="normed" of the'
    ):
        hires_cam(model, images, 3, where="tokens")
    # After the norm, the map has all of the logit but the bias.
    bias = model.params["head"]["bias"][3]
    found = hires_cam(model, images, 3).sum(axis=(1, 2)) + bias
    np.testing.assert_allclose(found, model(images)[:, 3], rtol=1e-4, atol=1e-4)
    x = np.asarray(eigen_cam(model, images, where="normed"))
    assert np.abs(x - eigen_cam(model, images)).max() > 1e-2


def test_nothing_reads_the_last_patches_of_a_class_token(make_model, make_images):
    model = make_model(registers=1)
    images, classes = make_images(model), jnp.array([3, 1])
    _, gradient = of_patches(model, images, classes, "tokens", 1, 2)
    np.testing.assert_array_equal(gradient, np.zeros((2, 6, 16)))
    for cam in (grad_cam, hires_cam):
        with pytest.raises(
            UserError, match=r'map would be blank: with pooling cls .* where="norm1" or'
        ):
            cam(model, images, classes, where="tokens")
        with pytest.raises(UserError, match="map would be blank: with pooling cls"):
            cam(model, images, classes, where="normed")
    # Those before reach it through the last block's norm alone.
    x, gradient = of_patches(model, images, classes, "tokens", 0, 2)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose((x * gradient).sum(axis=2), np.zeros((2, 6)), atol=1e-5)
    with pytest.raises(UserError, match=r'read through a norm .* where="norm1" of the'):
        hires_cam(model, images, classes, 0, where="tokens")
    assert np.ptp(grad_cam(model, images, classes, 0, where="tokens")) > 1e-2
    # The principal component needs no gradient.
    assert np.ptp(eigen_cam(model, images, where="tokens")) > 0
    model = make_model(pooling="gap", registers=1)
    _, gradient = of_patches(model, images, classes, "tokens", 1, 2)
    assert np.abs(gradient).max(axis=2).min() > 1e-3


def test_wrong_arguments(make_model, make_images):
    model = make_model()
    images = make_images(model)
    with pytest.raises(
        UserError, match="'norm2': this model has norm1, tokens, normed in"
    ):
        grad_cam(model, images, 0, where="norm2")
    with pytest.raises(UserError, match="layer=2: there are 2 layers; expected an in"):
        eigen_cam(model, images, layer=2)
    with pytest.raises(UserError, match="layer='last': there are 2 layers"):
        hires_cam(model, images, 0, layer="last")
    with pytest.raises(UserError, match=r"images have shape \(2, 4\), expected"):
        eigen_cam(model, np.zeros((2, 4), np.float32))
    with pytest.raises(UserError, match="'normed': this model has norm1, tokens in bl"):
        grad_cam(model, images, 0, 0, where="normed")
    mixer = make_model(mixer=True)
    with pytest.raises(UserError, match="'norm1': this model has tokens, normed in bl"):
        grad_cam(mixer, images, 0, where="norm1")


def test_scaled_maps():
    maps = np.array([[[-1.0, 0.0], [1.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]]], np.float32)
    expected = np.array([[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]])
    np.testing.assert_allclose(normalized(maps), expected, atol=1e-6)
    # The small number keeps tiny maps tiny, as in pytorch-grad-cam.
    tiny = normalized(np.array([[[0.0, 1e-7]]], np.float32))
    np.testing.assert_allclose(tiny, [[[0, 0.5]]], rtol=1e-5)
