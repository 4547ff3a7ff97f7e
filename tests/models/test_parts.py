"""The parts of a model, called alone: patches, embed, encode, pool, head."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import MlpMixer, VisionTransformer, abstract_params, build
from vit_jax.models.positions import METHODS, resize

CHANGES = {
    "cls": {},
    "gap": {"pooling": "gap", "registers": 2, "norm": "after_pool"},
    "map": {"pooling": "map", "pre_logits": 7},
    "cls_gap": {"pooling": "cls_gap", "registers": 2},
    "distilled": {"distillation_token": True, "registers": 2},
    "headless": {"num_classes": 0},
    "mixer": {},
}


@pytest.fixture(params=CHANGES)
def architecture(request, tiny, tiny_mixer):
    make = tiny_mixer if request.param == "mixer" else tiny
    return make(**CHANGES[request.param])


def test_calling_the_parts_in_turn_equals_the_whole(
    architecture, random_params, random_images
):
    model = build(architecture)
    params, images = random_params(architecture), random_images(architecture)

    def part(method, *arguments, names):
        """Calls a part of the model with only the parameters that it needs."""
        chosen = {n: x for n, x in params.items() if n.startswith(names)}
        return model.apply({"params": chosen}, *arguments, method=method)

    inputs = ("patch_embed", "pos_embed", "cls", "distillation", "registers")
    patches = part("patches", images, names=("patch_embed", "pos_embed"))
    assert patches.shape == (2, 2, 3, 16)
    x = part("embed", images, names=inputs)
    assert x.shape == (2, architecture.num_tokens, 16)
    first = architecture.num_prefix_tokens
    np.testing.assert_array_equal(x[:, first:], patches.reshape(2, 6, 16))
    x = part("encode", x, names=("blocks_",))
    vectors = part("pool", x, names=("norm", "map_head", "pre_logits"))
    logits = part("head", vectors, names=("head",))
    count = 2 if "head_distillation" in params else 1
    assert len(vectors) == len(logits) == count
    expected = model.apply({"params": params}, images)
    # The whole call computes only the tokens that are read, which rounds differently.
    np.testing.assert_allclose(sum(logits) / count, expected, atol=2e-6)


def test_patches_have_their_positions(tiny, random_params, random_images):
    architecture = tiny()
    params, images = random_params(architecture), random_images(architecture)
    patches = partial(VisionTransformer(architecture).apply, method="patches")
    moved = params | {"pos_embed": params["pos_embed"] + 1}
    before, after = (patches({"params": p}, images) for p in (params, moved))
    np.testing.assert_allclose(after - before, 1, atol=1e-6)


def test_some_of_the_patches_can_be_encoded(tiny, random_params, random_images):
    """Encodes a subset of the patches, as masked pretraining does."""
    architecture = tiny(registers=2)
    model = VisionTransformer(architecture)
    params, images = random_params(architecture), random_images(architecture)

    def kept(model, images):
        patches = model.patches(images).reshape(2, 6, 16)
        return model.encode(model.add_prefix(patches[:, 3:]))

    tokens = nn.apply(kept, model)({"params": params}, images)
    assert tokens.shape == (2, 3 + 3, 16)
    # Blocks do not depend on the order of tokens: the result equals that of an image of
    # the lower half, at its positions.
    half = tiny(registers=2, image_size=(4, 6))
    lower = params | {"pos_embed": params["pos_embed"][:, 1:]}
    x = VisionTransformer(half).apply({"params": lower}, images[:, 4:], method="embed")
    expected = model.apply({"params": params}, x, method="encode")
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "mixer"])
def test_parts_share_the_keys_of_the_call(
    kind, tiny, tiny_mixer, random_params, random_images
):
    architecture = {"vit": tiny(pooling="gap"), "mixer": tiny_mixer()}[kind]
    model = build(architecture, dropout_rate=0.3, stochastic_depth=0.4)
    variables = {"params": random_params(architecture)}
    images = random_images(architecture, batch=4)
    rngs = {"dropout": jax.random.key(0)}

    def composed(model, images):
        keys = model.dropout_keys(train=True)
        x = model.encode(model.embed(images, keys), keys)
        [logits] = model.head(model.pool(x))
        return logits

    found = nn.apply(composed, model)(variables, images, rngs=rngs)
    expected = model.apply(variables, images, train=True, rngs=rngs)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert jnp.abs(expected - model.apply(variables, images)).max() > 0.01


def test_each_heads_logits_by_name(tiny, random_params, random_images):
    architecture = tiny(distillation_token=True)
    params, images = random_params(architecture), random_images(architecture)
    model = VisionTransformer(architecture, jnp.bfloat16)
    names = ("head", "head_distillation", "normed")
    logits, found = model.apply({"params": params}, images, intermediates=names)
    for i, name in enumerate(names[:2]):
        vector = np.asarray(found["normed"][:, i], np.float32)
        kernel, bias = (np.asarray(params[name][n]) for n in ("kernel", "bias"))
        expected = vector @ kernel + bias
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    mean = (found["head"] + found["head_distillation"]) / 2
    np.testing.assert_allclose(logits, mean, atol=1e-6)


def test_a_missing_second_head(tiny, random_params, random_images):
    architecture = tiny()
    variables = {"params": random_params(architecture)}
    with pytest.raises(ValueError, match=r"'head_distillation'; .* pre_logits, head"):
        VisionTransformer(architecture).apply(
            variables,
            random_images(architecture),
            intermediates=("head_distillation",),
        )


def test_the_head_of_a_mixer_by_name(tiny_mixer, random_params, random_images):
    architecture = tiny_mixer()
    variables = {"params": random_params(architecture)}
    images = random_images(architecture)
    model = MlpMixer(architecture)
    logits, found = model.apply(variables, images, intermediates=("head",))
    np.testing.assert_array_equal(found["head"], logits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("image_size", [(12, 10), (4, 6)], ids=["larger", "smaller"])
def test_positions_are_resized_in_the_program_as_on_the_host(
    method, image_size, tiny, random_params, random_images
):
    architecture = tiny(registers=1)
    other = dataclasses.replace(architecture, image_size=image_size)
    params, images = random_params(architecture), random_images(other)
    resized = resize(params["pos_embed"], other.grid, method)
    embed = partial(jax.jit, static_argnums=0)(
        lambda model, params: model.apply({"params": params}, images, method="embed")
    )
    found = embed(VisionTransformer(architecture, posemb_resize=method), params)
    expected = embed(VisionTransformer(other), params | {"pos_embed": resized})
    assert found.shape == (2, other.num_tokens, 16)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_other_sizes_reach_the_logits_and_gradients_the_positions(
    tiny, random_params, random_images
):
    architecture = tiny(pooling="gap")
    other = dataclasses.replace(architecture, image_size=(12, 10))
    params, images = random_params(architecture), random_images(other)
    model = VisionTransformer(architecture, posemb_resize="bilinear")

    def total(params, model, resized=False):
        if resized:
            grid = resize(params["pos_embed"], other.grid, "bilinear")
            params = params | {"pos_embed": grid}
        return jnp.sum(jnp.sin(model.apply({"params": params}, images)))

    both = jax.jit(jax.value_and_grad(total), static_argnums=(1, 2))
    found = both(params, model)
    expected = both(params, VisionTransformer(other), True)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    pos_embed = found[1]["pos_embed"]
    assert jnp.abs(pos_embed).max() > 0.01
    np.testing.assert_allclose(pos_embed, expected[1]["pos_embed"], atol=1e-5)


def test_resizing_changes_nothing_at_the_models_own_size(
    tiny, random_params, random_images
):
    architecture = tiny()
    params, images = random_params(architecture), random_images(architecture)
    found, expected = (
        VisionTransformer(architecture, posemb_resize=method).apply(
            {"params": params}, images
        )
        for method in ("bicubic", None)
    )
    np.testing.assert_array_equal(found, expected)


def test_sincos_positions_are_computed_for_the_images_grid(
    tiny, random_params, random_images
):
    architecture = tiny(posemb="sincos2d", class_token_position=False)
    other = dataclasses.replace(architecture, image_size=(12, 10))
    variables = {"params": random_params(architecture)}
    images = random_images(other)
    found = VisionTransformer(architecture, posemb_resize="bicubic").apply(
        variables, images
    )
    expected = VisionTransformer(other).apply(variables, images)
    np.testing.assert_array_equal(found, expected)


def test_a_hybrid_resizes_the_positions_of_its_features(tiny, random_params):
    architecture = tiny(trunk=(), patch_size=(8, 8), image_size=(16, 24))
    model = VisionTransformer(architecture, posemb_resize="google")
    images = jnp.ones((1, 24, 16, 3))
    shapes = abstract_params(architecture)
    found = jax.eval_shape(
        lambda params: model.apply({"params": params}, images, method="patches"), shapes
    )
    assert found.shape == (1, 3, 2, 16)


def test_sizes_that_cannot_be_cut_into_patches_are_refused(tiny, random_params):
    architecture = tiny()
    variables = {"params": random_params(architecture)}
    model = VisionTransformer(architecture, posemb_resize="bicubic")
    with pytest.raises(
        ValueError, match=r"\(1, 9, 6, 3\): .* height 9 is not .*nearest: 8 and 12"
    ):
        model.apply(variables, jnp.zeros((1, 9, 6, 3)))
    with pytest.raises(ValueError, match=r"\(8, 6, 3\) after the batch"):
        model.apply(variables, jnp.zeros((1, 8, 6, 1)))
    unknown = VisionTransformer(architecture, posemb_resize="lanczos")
    with pytest.raises(ValueError, match="'lanczos', expected one of bicubic, "):
        unknown.apply(variables, jnp.zeros((1, 8, 6, 3)))
