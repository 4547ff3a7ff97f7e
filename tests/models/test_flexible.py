"""Flexible patch sizes: published resizes, their gradients, and equal fixed models."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import (
    Architecture,
    abstract_params,
    architecture_from_dict,
    architecture_from_variant,
    build,
)
from vit_jax.models.flexible import (
    at_patch_size,
    fixed,
    fixed_params,
    is_flexible,
    pseudo_inverse,
    resize_patches,
)
from vit_jax.models.positions import resize

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "flexible_references.npz"
SIZES = {"width": 8, "depth": 1, "mlp_dim": 16, "num_heads": 2, "num_classes": 3}
FLEXIBLE = {
    "flexible_kernel": (6, 4),
    "flexible_grid": (3, 2),
    "flexible_resize": "linear",
}


def architecture(**fields):
    sizes = {"patch_size": (4, 4), "image_size": (24, 24)}
    return Architecture(**{**SIZES, **sizes, **FLEXIBLE, **fields})


def random_params(of, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
        abstract_params(of),
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(module, params, x, patch_size=None):
    return module.apply({"params": params}, x, patch_size=patch_size)


def images(size=(24, 24)):
    return np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)


def bilinear(old, new):
    """Computes the matrix of a 2-D resize by resizing one pixel after the other."""
    height, width = old
    pixels = jnp.eye(height * width).reshape(-1, height, width)
    shape = (len(pixels), *new)
    resized = jax.image.resize(pixels, shape, "bilinear", antialias=False)
    return np.asarray(resized, np.float64).reshape(len(pixels), -1).T  # [new, old]


def test_kernels_are_those_of_timm():
    with np.load(GOLDEN) as file:
        references = dict(file)
    stored = references.pop("stored")
    for name, expected in references.items():
        size = tuple(map(int, name.split("x")))
        channels = expected.shape[-1]
        on_host = resize_patches(stored, size)[..., :channels]
        traced = jax.jit(resize_patches, static_argnums=1)(stored, size)
        for found in (on_host, traced[..., :channels]):
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    assert len(references) == 6


@pytest.mark.parametrize("new", [(4, 3), (9, 8), (3, 8)])
def test_a_kernel_is_the_projection_of_the_paper(new):
    old = (6, 4)
    kernel = np.random.default_rng(0).standard_normal((*old, 2, 3)).astype(np.float32)
    matrix = bilinear(old, new)
    flat = kernel.reshape(24, 6).astype(np.float64)
    expected = (np.linalg.pinv(matrix.T) @ flat).reshape(*new, 2, 3)
    np.testing.assert_allclose(resize_patches(kernel, new), expected, atol=2e-6)
    if min(new) > max(old):  # no detail is lost: the tokens are the same
        patch = np.random.default_rng(1).standard_normal(24)
        ours = (matrix @ patch) @ resize_patches(kernel, new).reshape(-1, 6)
        np.testing.assert_allclose(ours, patch @ flat, atol=1e-5)


def test_the_gradient_of_the_stored_kernel_is_that_of_the_used_one_transposed():
    kernel = np.random.default_rng(0).standard_normal((6, 4, 2, 3)).astype(np.float32)
    wanted = np.random.default_rng(1).standard_normal((3, 8, 2, 3)).astype(np.float32)

    def loss(kernel):
        return jnp.sum(resize_patches(kernel, (3, 8)) * wanted)

    matrix = np.linalg.pinv(bilinear((6, 4), (3, 8)).T)
    expected = matrix.T @ wanted.reshape(24, 6).astype(np.float64)
    found = jax.jit(jax.grad(loss))(kernel).reshape(24, 6)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("grid", [(2, 9), (5, 30), (7, 7)])
def test_positions_are_resized_as_by_the_published_code(grid):
    positions = np.random.default_rng(0).standard_normal((1, 7, 7, 4), np.float32)
    expected = jax.image.resize(positions, (1, *grid, 4), "linear")
    np.testing.assert_allclose(resize(positions, grid, "linear"), expected, atol=1e-6)


@pytest.mark.parametrize("posemb", ["learned", "sincos2d"])
def test_a_fixed_model_of_each_size_computes_the_same(posemb):
    fields = {} if posemb == "learned" else {"flexible_grid": None}
    fields |= {"flexible_resize": FLEXIBLE["flexible_resize"] * (posemb == "learned")}
    flexible = architecture(posemb=posemb, class_token_position=False, **fields)
    params, x = random_params(flexible), images()
    module = build(flexible)
    sizes = (8, (4, 4), (6, 12)) if posemb == "learned" else (8,)
    for size in sizes:
        found = apply(module, params, x, size)
        other = at_patch_size(flexible, size)
        assert abstract_params(other) == abstract_params(flexible)
        assert not is_flexible(fixed(other))
        plain = fixed_params(params, other)
        assert jax.tree.map(np.shape, plain) == jax.tree.map(
            lambda leaf: leaf.shape, abstract_params(fixed(other))
        )
        same = apply(build(fixed(other)), plain, x)
        np.testing.assert_allclose(found, same, rtol=0, atol=1e-6)
        assert np.ptp(found) > 0.1


def test_a_model_of_one_size_computes_at_another_with_a_method_for_its_positions():
    plain = fixed(architecture())
    params, x = random_params(plain), images()
    module = build(plain, posemb_resize="bicubic")
    found = apply(module, params, x, 8)
    expected = dict(params) | {
        "patch_embed": {
            "kernel": resize_patches(params["patch_embed"]["kernel"], (8, 8)),
            "bias": params["patch_embed"]["bias"],
        },
        "pos_embed": resize(params["pos_embed"], (3, 3), "bicubic"),
    }
    other = build(dataclasses.replace(plain, patch_size=(8, 8)))
    np.testing.assert_allclose(found, apply(other, expected, x), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="set posemb_resize, the method to resize"):
        build(plain).apply({"params": params}, x, patch_size=8)


def test_impossible_sizes_and_models_are_refused():
    module = build(architecture())
    with pytest.raises(ValueError, match="height 24 is not a multiple of the patch"):
        module.apply({"params": random_params(architecture())}, images(), patch_size=7)
    sizes = {"image_size": (32, 32), "num_classes": 3}
    mixer = architecture_from_variant("Mixer-B/16", **sizes)
    with pytest.raises(ValueError, match="an MLP-Mixer mixes a fixed number"):
        at_patch_size(mixer, 8)
    hybrid = architecture_from_variant("R50+B/16", **sizes)
    with pytest.raises(ValueError, match="a ResNet in front of the patches"):
        at_patch_size(hybrid, 32)
    for fields, text in [
        ({"flexible_grid": None}, "flexible_grid and flexible_resize need each other"),
        ({"posemb": "sincos2d"}, "belongs to flexible_kernel and learned positions"),
        ({"flexible_kernel": None}, "belongs to flexible_kernel and learned positions"),
        ({"flexible_resize": "line"}, "flexible_resize is 'line', expected one of"),
    ]:
        with pytest.raises(ValueError, match=text):
            architecture(class_token_position=False, **fields)


def test_other_models_are_described_as_before():
    flexible = architecture()
    assert architecture_from_dict(flexible.to_dict()) == flexible
    written = fixed(flexible).to_dict()
    assert not [name for name in written if name.startswith("flexible")]


def test_the_published_resizes_lose_nothing_from_16_to_48_and_back():
    there, back = pseudo_inverse(16, 48), pseudo_inverse(48, 16)
    assert there.shape == (48, 16)
    assert np.linalg.matrix_rank(there) == 16
    # But not from 32 to 8, where half of the rank is gone for good.
    assert np.linalg.matrix_rank(pseudo_inverse(8, 32) @ pseudo_inverse(32, 8)) == 8
    assert back.shape == (16, 48)
