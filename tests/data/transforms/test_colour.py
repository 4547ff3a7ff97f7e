"""Tests of operations on colours against Pillow, and of the random draws."""

import pathlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from vit_jax.data.transforms import colour, tones
from vit_jax.data.transforms.chains import parse_chain
from vit_jax.errors import UserError

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "golden/augment_timm.npz")
SOURCE = GOLDEN["source"]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


def images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Makes pictures and noise, in colour and grey, and as a reversed view."""
    colours = [SOURCE, *(noise(*size) for size in sizes)]
    return [*colours, *(image[:, :, :1] for image in colours), SOURCE[:, ::-1]]


def to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def assert_pillows(ours: np.ndarray, theirs: Image.Image, image: np.ndarray) -> None:
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.asarray(theirs).reshape(image.shape))


@pytest.mark.parametrize("factor", [0, 0.1, 0.37, 0.7, 1, 1.3, 1.9, 5])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.adjust_brightness, ImageEnhance.Brightness),
        (colour.adjust_contrast, ImageEnhance.Contrast),
        (colour.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_adjustments_match_pillow_pixel_by_pixel(ours, theirs, factor):
    for image in images((31, 17), (1, 3)):
        expected = theirs(to_pillow(image)).enhance(factor)
        assert_pillows(ours(image, factor), expected, image)


@pytest.mark.parametrize("turns", [0.1, -0.3])
def test_hue_matches_torchvision_pixel_by_pixel(turns):
    turned = colour.adjust_hue(SOURCE, turns)
    np.testing.assert_array_equal(turned, GOLDEN[f"hue/{turns}"])
    assert (turned != SOURCE).any()
    np.testing.assert_array_equal(
        colour.adjust_hue(SOURCE[:, :, :1], turns)[:, :, 0], SOURCE[:, :, 0]
    )


def test_grey_and_solarize_match_pillow_pixel_by_pixel():
    for image in images((31, 17)):
        size, picture = image.shape[:2], to_pillow(image)
        expected = picture.convert("L").convert(picture.mode)
        assert_pillows(parse_chain("grey", size)(image), expected, image)
        for threshold in (0, 1, 128, 255, 256):
            ours = parse_chain(f"solarize({threshold})", size)(image)
            assert_pillows(ours, ImageOps.solarize(picture, threshold), image)


def test_blur_matches_pillow_to_one_grey_level():
    for radius in np.random.default_rng(0).uniform(0.1, 2, 12).tolist():
        for image in images((31, 17), (2, 5)):
            theirs = to_pillow(image).filter(ImageFilter.GaussianBlur(radius))
            difference = tones.blur(image, radius) - np.asarray(theirs).reshape(
                image.shape
            ).astype(int)
            assert abs(difference).max() <= 1
            assert (difference != 0).mean() < 0.01


def test_blur_draws_its_radius(monkeypatch):
    radii = []
    monkeypatch.setattr(tones, "blur", lambda image, r: radii.append(r) or image)
    random = np.random.default_rng(0)
    for _ in range(1000):
        colour.blur().apply(SOURCE, random)
    assert stats.kstest(radii, stats.uniform(0.1, 1.9).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("text", "prob"),
    [
        ("grey(prob=0.2)", 0.2),
        ("solarize(prob=0.2)", 0.2),
        ("blur(prob=0.5)", 0.5),
        ("blur(1, 2, prob=0.1)", 0.1),
        ("color_jitter(0.4, 0.4, 0.2, 0.1, prob=0.8)", 0.8),
    ],
)
def test_a_share_of_the_images_is_changed(text, prob):
    chain, random = parse_chain(text, (8, 8)), np.random.default_rng(0)
    image = noise(8, 8)
    changed = [np.any(chain(image, random) != image) for _ in range(1000)]
    assert stats.binomtest(sum(changed), 1000, prob).pvalue > 0.01
    assert chain.random


def test_what_always_happens_draws_nothing_more():
    for texts in (
        ("blur", "blur(prob=1)"),
        ("color_jitter(0.4)", "color_jitter(0.4, prob=1.0)"),
    ):
        images = [
            parse_chain(text, SOURCE.shape[:2])(SOURCE, np.random.default_rng(3))
            for text in texts
        ]
        np.testing.assert_array_equal(*images)
    assert not parse_chain("grey|solarize", SOURCE.shape[:2]).random
    never = parse_chain("grey(prob=0)", SOURCE.shape[:2])
    np.testing.assert_array_equal(never(SOURCE, np.random.default_rng(0)), SOURCE)
    with pytest.raises(UserError, match="prob=2 must be a number, from 0 to 1"):
        parse_chain("grey(prob=2)", (8, 8))


def test_three_augment_applies_exactly_one_of_three():
    chain = parse_chain("three_augment", SOURCE.shape[:2])
    random = np.random.default_rng(0)
    grey, solarized = colour.grey().apply(SOURCE, None), tones.solarize(SOURCE, 128)
    counts = np.zeros(3)
    for _ in range(900):
        result = chain(SOURCE, random)
        if np.array_equal(result, grey):
            counts[0] += 1
        elif np.array_equal(result, solarized):
            counts[1] += 1
        else:
            assert abs(result.astype(int) - SOURCE).mean() < 15
            counts[2] += 1
    assert stats.chisquare(counts).pvalue > 0.01


def test_jitter_draws_factors_and_their_order(monkeypatch):
    drawn = []

    def recording(name):
        return name, lambda image, factor: drawn.append((name, factor)) or image

    names = [name for name, _ in colour.ADJUSTMENTS]
    monkeypatch.setattr(colour, "ADJUSTMENTS", tuple(map(recording, names)))
    jitter = colour.color_jitter(0.3, 1.5, 0.2, 0.1)
    random = np.random.default_rng(0)
    for _ in range(2400):
        jitter.apply(SOURCE, random)
    orders, counts = np.unique(
        np.reshape([name for name, _ in drawn], (2400, 4)), axis=0, return_counts=True
    )
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > 0.01
    bounds = {
        "brightness": (0.7, 1.3),
        "contrast": (0, 2.5),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in bounds.items():
        factors = [factor for which, factor in drawn if which == name]
        uniform = stats.uniform(low, high - low)
        assert stats.kstest(factors, uniform.cdf).pvalue > 0.01
    drawn.clear()
    colour.color_jitter(saturation=0.2).apply(SOURCE, random)
    assert [name for name, _ in drawn] == ["saturation"]


def test_jitter_applies_what_it_draws():
    jitter, replay = colour.color_jitter(0.3, 0.3, 0.3), np.random.default_rng(5)
    expected = SOURCE
    for chosen in replay.permutation(4):
        if chosen < 3:
            expected = colour.ADJUSTMENTS[chosen][1](expected, replay.uniform(0.7, 1.3))
    result = jitter.apply(SOURCE, np.random.default_rng(5))
    np.testing.assert_array_equal(result, expected)
    assert (result != SOURCE).any()
