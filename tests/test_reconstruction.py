"""Masks of all kinds, and the images that a masked autoencoder reconstructs."""

import dataclasses

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, build
from vit_jax.models.decoder import DecoderFacts, abstract_decoder
from vit_jax.reconstruction import DecoderOfModel, noise_and_kept

# A rectangle of 2 × 3 patches of 4 × 2 pixels.
A = Architecture(
    width=8,
    depth=1,
    mlp_dim=8,
    num_heads=2,
    patch_size=(4, 2),
    image_size=(8, 6),
    num_classes=0,
)
FACTS = DecoderFacts(8, 1, 16, 2, normalize_pixels=True)


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype("f"), shapes)


@pytest.fixture(scope="module")
def make():
    """Returns a function of the decoder's facts, or None, that makes a model."""
    from vit_jax.models import abstract_params

    def model(facts):
        decoder = facts and DecoderOfModel(facts, drawn(abstract_decoder(A, facts)))
        return vit_jax.Model(
            build(A),
            drawn(abstract_params(A)),
            Preprocessing(A.image_size),
            (),
            to_plain(default_config()),
            0,
            decoder=decoder,
        )

    return model


@pytest.fixture(scope="module")
def model(make):
    return make(FACTS)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, 8, 6, 3)).astype(np.float32)


def test_masks_of_patches_grid_and_pixels_are_the_same():
    grid = np.array([[[0, 1, 0], [1, 1, 0]], [[1, 0, 1], [0, 0, 1]]], bool)
    pixels = np.zeros((2, 8, 6), bool)
    # One pixel hides its patch; here a different one of each.
    for image, row, column in np.argwhere(grid):
        pixels[image, 4 * row + column, 2 * column + row] = True
    found = [noise_and_kept(A, 2, mask) for mask in (grid, grid.reshape(2, 6), pixels)]
    for noise, kept in found:
        assert np.array_equal(noise, grid.reshape(2, 6))
        assert kept.tolist() == [3, 3]


def test_a_mask_gives_what_its_noise_gives(model, images):
    # Of the visible patches, the encoder sees the same set in another order.
    noise = np.random.default_rng(2).random((3, 6))
    hidden = noise > np.sort(noise, axis=1)[:, [1]]
    by_noise = model.reconstruct(images, noise=noise, mask_ratio=0.6)
    by_mask = model.reconstruct(images, hidden)
    assert np.array_equal(by_noise.mask.reshape(3, 6), hidden)
    for one, other in zip(by_noise, by_mask, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def test_images_may_have_different_numbers_of_hidden_patches(model, images):
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]], bool)
    found = model.reconstruct(images, mask)
    assert np.array_equal(found.mask.reshape(3, 6), mask)
    for index in (0, 1):
        alone = model.reconstruct(images[index : index + 1], mask[index : index + 1])
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_allclose(one[index], other[0], rtol=0, atol=1e-5)


def test_images_are_put_together_and_the_loss_is_that_of_hidden_patches(model, images):
    mask = np.zeros((3, 2, 3), bool)
    mask[:, 0, :2] = True
    found = model.reconstruct(images, mask)
    hidden = np.repeat(np.repeat(mask, 4, axis=1), 2, axis=2)[..., None]
    assert np.array_equal(found.masked, np.where(hidden, 0, images))
    assert np.array_equal(found.combined, np.where(hidden, found.pixels, images))
    # In the target: pixels less their patch's mean, over its standard deviation.
    true, predicted = (
        np.asarray(x).reshape(3, 2, 4, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
        for x in (images, found.pixels)
    )
    variance = true.var(axis=(3, 4, 5), ddof=1) + 1e-6
    errors = ((true - predicted) ** 2).mean(axis=(3, 4, 5)) / variance
    np.testing.assert_allclose(
        found.loss, errors[mask].reshape(3, 2).mean(1), rtol=1e-5
    )


def test_patches_are_drawn_from_the_seed(model, images):
    one, same, other = (model.reconstruct(images, seed=s).mask for s in (0, 0, 1))
    # int(6 · 0.25) of 6 patches are visible.
    assert np.asarray(one).reshape(3, 6).sum(axis=1).tolist() == [5, 5, 5]
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.ones((3, 6), bool)}, r"image 0: all of its 6 patches"),
        (
            {"mask": np.array([[True] + [False] * 5] * 2 + [[False] * 6])},
            r"mask has \(image 2: none of its 6 patches\)",
        ),
        ({"mask": np.ones((3, 5), bool)}, r"bool of shape \(3, 5\); expected bool, T"),
        ({"mask": np.ones((2, 6), bool)}, r"shapes \(3, 6\), \(3, 2, 3\), \(3, 8, 6\)"),
        (
            {"mask": np.ones((3, 6))},
            r"mask is float64 of shape \(3, 6\); expe",
        ),
        ({"mask": True}, r"mask is bool of shape \(\); expected bool"),
        ({"mask": np.ones((3, 6), bool), "mask_ratio": 0.5}, "either mask or mask_ra"),
        ({"mask": np.ones((3, 6), bool), "noise": 1}, "pass either mask or noise, not"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1.0: of 6 patches, at least one has"),
        ({"mask_ratio": 0}, r"mask_ratio=0.0: of 6 patches, at least one"),
        ({"mask_ratio": 2.5}, r"mask_ratio=2.5: of 6 patches"),
        ({"mask_ratio": "half"}, "mask_ratio='half': expected a number"),
        ({"noise": np.ones((3, 5))}, r"noise is float64 of shape \(3, 5\); expected f"),
        (
            {"noise": np.ones((3, 6), int)},
            r"noise is int64 .* floats of shape \(3, 6",
        ),
        ({"noise": np.full((3, 6), np.nan)}, "noise has values that are not finite"),
    ],
)
def test_impossible_masks_are_refused(model, images, arguments, message):
    with pytest.raises(UserError, match=message):
        model.reconstruct(images, **arguments)


def test_other_images_are_refused(model, images):
    with pytest.raises(UserError, match=r"images have shape \(3, 8, 4, 3\); expected"):
        model.reconstruct(images[:, :, :4])


def test_a_model_without_a_decoder_cannot_reconstruct(make, images):
    with pytest.raises(UserError, match="this model has no decoder, so it cannot"):
        make(None).reconstruct(images)


def test_what_the_decoder_predicts_must_be_known(make, images):
    unknown = dataclasses.replace(FACTS, normalize_pixels=None)
    with pytest.raises(UserError, match="load it with normalize_pixels=True if its"):
        make(unknown).reconstruct(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0, expected a whole number"),
        ({"width": 10}, "sincos2d needs a width of 8, 12"),
        ({"num_heads": 3}, "width 8 is not a multiple of num_heads 3"),
        ({"posemb": "rotary"}, "posemb is 'rotary', expected one of learned, sinc"),
    ],
)
def test_impossible_decoders_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderFacts.from_dict(FACTS.to_dict() | changes)
