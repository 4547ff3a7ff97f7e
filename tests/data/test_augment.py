"""Crops, flips and resizes, and the text that chains them."""

import numpy as np
import pytest

from vit_jax.data.augment import OPERATIONS, inception_box, parse_chain
from vit_jax.data.resizing import resize_image
from vit_jax.errors import UserError


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_resize_squashes_and_keeps_what_fits():
    image = noise(10, 20)
    assert parse_chain("resize", (6, 8))(image).shape == (6, 8, 3)
    np.testing.assert_array_equal(parse_chain("resize", (10, 20))(image), image)


def test_resize_small_keeps_the_aspect_and_averages_areas():
    chain = parse_chain("resize_small(4)", (4, 8))
    image = noise(8, 16)
    means = image.reshape(4, 2, 8, 2, 3).mean((1, 3))
    assert abs(chain(image) - means).max() <= 0.5
    cropped = parse_chain("resize_small(6)|central_crop", (4, 4))
    assert cropped(noise(30, 17)).shape == (4, 4, 3)
    # Left out, the size covers a rectangle whichever side is short.
    for shape in ((50, 20), (20, 50), (3, 3)):
        covered = parse_chain("resize_small|central_crop", (8, 12))(noise(*shape))
        assert covered.shape == (8, 12, 3)


@pytest.mark.parametrize(("rounding", "shape"), [("nearest", (4, 7)), ("down", (4, 6))])
def test_the_longer_side_is_rounded(rounding, shape):
    # 5 · 4 / 3 = 6.67
    chain = parse_chain(f"resize_small(4, 'area', {rounding!r})", (4, 6))
    for size in ((3, 5), (5, 3)):
        (resize,) = chain.steps
        expected = shape if size == (3, 5) else shape[::-1]
        assert resize.output_size(size) == expected
        assert resize.apply(noise(*size), None).shape[:2] == expected


@pytest.mark.parametrize("rounding", ["nearest", "down"])
def test_a_longer_side_that_comes_out_whole_is_not_rounded(rounding):
    (resize,) = parse_chain(f"resize_small(49, rounding={rounding!r})", (49, 49)).steps
    for short in range(1, 400):  # among them 49, and 49 · (1 / 49) is below 1
        assert resize.output_size((3 * short, short)) == (147, 49)


@pytest.mark.parametrize(
    ("chain", "top", "left"),
    [
        ("central_crop", 2, 3),
        ("central_crop(rounding='down')", 2, 3),
        ("central_crop(rounding='nearest')", 2, 4),  # of 2.5 and 3.5 the even number
    ],
)
def test_central_crop_is_in_the_middle(chain, top, left):
    image = noise(9, 12)
    cropped = parse_chain(chain, (4, 5))(image)
    np.testing.assert_array_equal(cropped, image[top : top + 4, left : left + 5])


def test_random_crop_reaches_every_offset():
    chain = parse_chain("random_crop", (4, 4))
    rows, columns = np.indices((6, 7), dtype=np.uint8)
    image = np.dstack([rows, columns, rows])
    random = np.random.default_rng(0)
    corners = {tuple(chain(image, random)[0, 0, :2].tolist()) for _ in range(400)}
    assert corners == {(top, left) for top in range(3) for left in range(4)}


@pytest.mark.parametrize("size", [(8, 8), (37, 100), (300, 200)])
def test_inception_boxes_keep_area_and_aspect(size):
    random = np.random.default_rng(0)
    height, width = size
    area, aspect = (0.05, 1.0), (0.75, 1.33)
    fractions = []
    for _ in range(2000):
        top, left, h, w = inception_box(size, random, area, aspect)
        assert top >= 0
        assert left >= 0
        assert top + h <= height
        assert left + w <= width
        fractions.append(h * w / (height * width))
        # Half a pixel of rounding on the width, and no more.
        assert 0.75 - 0.5 / h <= w / h <= 1.33 + 0.5 / h
    assert 0.05 <= min(fractions) < 0.1
    largest = min(1.0, min(size) ** 2 * 1.33 / (height * width))
    assert 0.85 * largest < max(fractions) <= 1


def test_inception_crop_narrows_by_its_arguments():
    random = np.random.default_rng(0)
    areas = [
        np.prod(inception_box((100, 100), random, (0.5, 0.6), (1.0, 1.0))[2:])
        for _ in range(300)
    ]
    assert min(areas) >= 5000
    assert max(areas) <= 6000
    whole = inception_box((10, 100), random, (0.9, 1.0), (0.75, 1.33))
    assert whole == (0, 0, 10, 100)  # nothing fits: the whole image


def test_inception_crop_resizes_its_box():
    image, box_of = noise(40, 30), np.random.default_rng(7)
    top, left, h, w = inception_box((40, 30), box_of, (0.05, 1.0), (0.75, 1.33))
    expected = resize_image(image[top : top + h, left : left + w], (16, 16))
    result = parse_chain("inception_crop", (16, 16))(image, np.random.default_rng(7))
    np.testing.assert_array_equal(result, expected)


def test_flip_mirrors_half_of_the_images():
    chain, image = parse_chain("flip_lr", (4, 6)), noise(4, 6)
    random = np.random.default_rng(0)
    results = [chain(image, random) for _ in range(1000)]
    mirrored = sum(np.array_equal(one, image[:, ::-1]) for one in results)
    kept = sum(np.array_equal(one, image) for one in results)
    assert mirrored + kept == 1000
    assert 450 <= mirrored <= 550


def test_the_same_generator_gives_the_same_image():
    chain = parse_chain("inception_crop|flip_lr", (16, 16))
    image = noise(40, 40)
    first, again, other = (
        chain(image, np.random.default_rng(seed)) for seed in ((0, 5), (0, 5), (0, 6))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_empty_chain_keeps_the_pixels_and_checks_the_size():
    chain, image = parse_chain("", (8, 8)), noise(8, 8)
    np.testing.assert_array_equal(chain(image), image)
    with pytest.raises(UserError, match=r"a/b\.png is 8×9 .* takes 8×8.*'resize'"):
        chain(noise(8, 9), name="a/b.png")


def test_only_chance_makes_a_chain_random():
    for text, expected in {
        "": False,
        "resize_small(9)|central_crop": False,
        "resize|flip_lr": True,
        "random_crop": True,
        "inception_crop": True,
    }.items():
        assert parse_chain(text, (8, 8)).random is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resise", r"no operation 'resise'\. Did you mean 'resize'\?"),
        ("resize|flip", r"no operation 'flip'.* 'flip_lr'"),
        ("resize(", "'resize\\(' in the chain .* cannot be read"),
        ("resize||flip_lr", "'' in the chain .* cannot be read"),
        ("resize(open('x'))", "cannot be read"),
        ("resize(size)", "cannot be read"),
        ("resize(8, 8)", r"no interpolation 8\. There are: nearest, bilinear, bicubic"),
        ("resize(8, [1])", r"no interpolation \[1\]\. There are"),
        ("resize(8, 'cubic')", r"no interpolation 'cubic'\. Did you mean 'bicubic'\?"),
        (
            "inception_crop(interpolation='bicubic_antialiased')",
            r"mean 'bicubic_antialias'\?",
        ),
        (
            "resize_small(8, 'area', 'up')",
            r"no rounding 'up'\. There are: nearest, down",
        ),
        ("central_crop(8, 'dawn')", r"no rounding 'dawn'\. Did you mean 'down'\?"),
        ("resize(0)", "number of pixels or \\(height, width\\), not 0"),
        ("resize(8.0)", "not 8.0"),
        ("resize('8')", "not '8'"),
        ("resize(color=3)", "unexpected keyword argument 'color'; it takes size, int"),
        ("flip_lr(0.5)", "too many positional arguments; it takes nothing"),
        ("inception_crop(area_min=5)", "area_min=5 and area_max=1.0 must be"),
        ("inception_crop(area_max=100)", "a fraction of the image"),
        ("inception_crop(aspect_min=2)", "aspect_min=2 and aspect_max=1.33"),
        ("resize(16)", "makes images of 16×16, the model takes 8×8"),
        ("resize(4)|central_crop", "cannot cut 8×8 out of 4×4; resize first"),
        ("resize_small(4)|central_crop(6)", "makes images of 6×6"),
    ],
)
def test_what_cannot_be_read_says_why(text, message):
    with pytest.raises(UserError, match=message):
        parse_chain(text, (8, 8))


def test_arguments_by_position_and_by_name():
    image = noise(30, 20)
    for text in ("resize(8)", "resize((8, 8))", "resize(size=8)", "resize"):
        np.testing.assert_array_equal(
            parse_chain(text, (8, 8))(image), resize_image(image, (8, 8), "bilinear")
        )
    bicubic = parse_chain('resize(8, "bicubic")', (8, 8))(image)
    np.testing.assert_array_equal(bicubic, resize_image(image, (8, 8), "bicubic"))
    assert not np.array_equal(bicubic, resize_image(image, (8, 8)))
    assert set(OPERATIONS) == {
        "inception_crop",
        "random_crop",
        "central_crop",
        "resize",
        "resize_small",
        "flip_lr",
    }


def test_too_small_an_image_is_named():
    with pytest.raises(UserError, match=r"tiny\.png: cannot cut 8×8 out of 7×9"):
        parse_chain("central_crop", (8, 8))(noise(7, 9), name="tiny.png")
