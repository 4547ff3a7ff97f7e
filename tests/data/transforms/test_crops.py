"""Tests of crops, resizes and flips: the boxes and their distribution."""

import pathlib

import numpy as np
import pytest
from scipy import stats

from vit_jax.data.transforms.chains import parse_chain, with_first_boxes
from vit_jax.data.transforms.crops import inception_box, resized_crop_box
from vit_jax.data.transforms.resizing import resize_image
from vit_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
# Published values: the library, and bounds of area and aspect.
BOXES = {
    "tensorflow": (inception_box, (0.05, 1.0), (0.75, 1.33)),
    "timm": (resized_crop_box, (0.08, 1.0), (3 / 4, 4 / 3)),
}


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
    # The default size covers a rectangle, whichever side is shorter.
    for shape in ((50, 20), (20, 50), (3, 3)):
        covered = parse_chain("resize_small|central_crop", (8, 12))(noise(*shape))
        assert covered.shape == (8, 12, 3)


@pytest.mark.parametrize(("rounding", "shape"), [("nearest", (4, 7)), ("down", (4, 6))])
def test_the_longer_side_is_rounded(rounding, shape):
    # 5 · 4 / 3 = 6.67
    chain = parse_chain(f"resize_small(4, 'area', {rounding!r})", (4, 6))
    for size in ((3, 5), (5, 3)):
        (resize,) = chain.operations
        expected = shape if size == (3, 5) else shape[::-1]
        assert resize.output_size(size) == expected
        assert resize.apply(noise(*size), None).shape[:2] == expected


@pytest.mark.parametrize("rounding", ["nearest", "down"])
def test_exact_longer_side_is_not_rounded(rounding):
    (resize,) = parse_chain(
        f"resize_small(49, rounding={rounding!r})", (49, 49)
    ).operations
    for short in range(1, 400):  # among them 49, and 49 · (1 / 49) is below 1
        assert resize.output_size((3 * short, short)) == (147, 49)


@pytest.mark.parametrize(
    ("chain", "top", "left"),
    [
        ("central_crop", 2, 3),
        ("central_crop(rounding='down')", 2, 3),
        ("central_crop(rounding='nearest')", 2, 4),  # 2.5 and 3.5 are rounded to even
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
        # The width may be rounded by half a pixel.
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


@pytest.mark.parametrize("library", BOXES)
def test_boxes_are_distributed_as_the_published_ones(library):
    with np.load(GOLDEN / f"augment_{library}.npz") as file:
        published = file["boxes"].astype(float)
    draw, area, aspect = BOXES[library]
    random = np.random.default_rng(0)
    boxes = np.array([draw((375, 500), random, area, aspect) for _ in range(10_000)])
    for what in (
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: width / height,
        lambda top, left, height, width: height,
        lambda top, left, height, width: width,
        lambda top, left, height, width: top,
        lambda top, left, height, width: left,
    ):
        ours, theirs = what(*boxes.T), what(*published.T)
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01


@pytest.mark.parametrize("library", BOXES)
def test_positions_are_uniform(library):
    draw, area, aspect = BOXES[library]
    random = np.random.default_rng(1)
    boxes = np.array([draw((375, 500), random, area, aspect) for _ in range(10_000)])
    for offsets, lengths, whole in ((0, 2, 375), (1, 3, 500)):
        room = whole - boxes[:, lengths]
        # Maps an offset out of `room + 1` to [0, 1), uniformly if offsets are uniform.
        spread = (boxes[:, offsets] + random.random(len(boxes))) / (room + 1)
        assert stats.kstest(spread[room > 0], "uniform").pvalue > 0.01
        counts, _ = np.histogram(spread[room > 0], bins=20, range=(0, 1))
        assert stats.chisquare(counts).pvalue > 0.01


def test_resized_crop_boxes_without_borders_have_uniform_area_and_log_aspect():
    # The area is small enough for every box to fit.
    random = np.random.default_rng(2)
    area, aspect = (0.1, 0.2), (1 / 2, 2.0)
    boxes = [resized_crop_box((4000, 4000), random, area, aspect) for _ in range(5000)]
    height, width = np.array(boxes, float)[:, 2:].T
    fraction = height * width / 4000**2
    assert stats.kstest(fraction, stats.uniform(0.1, 0.1).cdf).pvalue > 0.01
    octaves = np.log2(width / height)
    assert stats.kstest(octaves, stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((10, 100), (0, 43, 10, 13)),  # the widest of aspect 4/3: 13.3
        ((100, 10), (43, 0, 13, 10)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_centre_is_used_if_no_box_fits(size, box):
    random = np.random.default_rng(0)
    drawn = resized_crop_box(size, random, (0.99, 1.0), (3 / 4, 4 / 3))
    assert drawn == box


def test_without_retry_one_draw_is_cut_to_the_image():
    """Compares with MAE's crop for linear probing, written as its paper's code does."""
    area, aspect = (0.08, 1.0), (3 / 4, 4 / 3)
    ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
    cut = np.zeros(2, int)
    for size in [(30, 90), (90, 30)] * 150:
        top, left, *sides = resized_crop_box(size, ours, area, aspect, False)
        pixels = theirs.uniform(*area) * 30 * 90
        ratio = np.exp(theirs.uniform(np.log(aspect[0]), np.log(aspect[1])))
        drawn = round(np.sqrt(pixels / ratio)), round(np.sqrt(pixels * ratio))
        assert sides == list(np.minimum(drawn, size))
        cut += np.greater(drawn, size)
        theirs.random(2)  # the place of the box
        assert 0 <= top <= size[0] - sides[0] and 0 <= left <= size[1] - sides[1]
    assert cut.min() > 30
    # In the smallest image, a side has at least a pixel.
    assert resized_crop_box((1, 1), ours, (0.01, 0.02), aspect, False) == (0, 0, 1, 1)
    parse_chain("random_resized_crop(retry=False)", (8, 8))
    for wrong in ("random_resized_crop(retry=2)", "inception_crop(rounded='no')"):
        with pytest.raises(UserError, match=r"\w+=.* must be True or False"):
            parse_chain(wrong, (8, 8))


def test_random_resized_crop_resizes_its_box():
    image, box_of = noise(40, 30), np.random.default_rng(7)
    box = resized_crop_box((40, 30), box_of, (0.08, 1.0), (3 / 4, 4 / 3))
    top, left, h, w = box
    expected = resize_image(
        image[top : top + h, left : left + w], (16, 16), "bicubic_antialias"
    )
    result = parse_chain("random_resized_crop", (16, 16))(
        image, np.random.default_rng(7)
    )
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_padding_mirrors_at_the_outermost_pixels(channels):
    chain, image = parse_chain("random_crop(padding=4)", (8, 9)), noise(8, 9, channels)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "reflect")
    windows = {
        padded[top : top + 8, left : left + 9].tobytes(): (top, left)
        for top in range(9)
        for left in range(9)
    }
    random = np.random.default_rng(3)
    places = [windows[chain(image, random).tobytes()] for _ in range(4050)]
    counts = np.zeros((9, 9))
    np.add.at(counts, tuple(np.transpose(places)), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


@pytest.mark.parametrize(("area_min", "mean"), [(0.05, 0.378), (0.4, 0.622)])
def test_small_inception_boxes_have_tensorflows_mean_area(area_min, mean):
    # The means of sample_distorted_bounding_box at 32×32, whose heights are rounded;
    # without the rounding they would be 0.384 and 0.629.
    random = np.random.default_rng(0)
    draws = [
        inception_box((32, 32), random, (area_min, 1.0), (0.75, 1.33))
        for _ in range(10_000)
    ]
    areas = np.prod(np.array(draws)[:, 2:], 1) / 32**2
    assert abs(areas.mean() - mean) < 4 * areas.std() / 10_000**0.5
    assert areas.min() >= area_min


def test_inception_boxes_from_64_pixels_on_are_those_of_earlier_versions():
    drawn = {
        size: inception_box(size, np.random.default_rng(5), (0.05, 1.0), (0.75, 1.33))
        for size in ((64, 64), (64, 300), (375, 500))
    }
    assert drawn == {
        (64, 64): (9, 2, 46, 56),
        (64, 300): (3, 65, 58, 71),
        (375, 500): (28, 32, 320, 389),
    }


def test_runs_of_the_first_versions_keep_their_boxes():
    random = np.random.default_rng(5)
    area, aspect = (0.4, 1.0), (0.75, 1.33)
    drawn = [inception_box((32, 32), random, area, aspect, False) for _ in range(3)]
    assert drawn == [(4, 0, 25, 30), (2, 0, 26, 20), (0, 1, 32, 25)]
    text = "resize(32)|inception_crop(24, area_min=0.4)|flip_lr"
    first = with_first_boxes(text)
    assert first == "resize(32)|inception_crop(24, area_min=0.4, rounded=False)|flip_lr"
    assert with_first_boxes(first) == first
    assert with_first_boxes("inception_crop|grey") == (
        "inception_crop(rounded=False)|grey"
    )
    assert with_first_boxes("") == ""
    image, different = noise(32, 32), 0
    for seed in range(20):
        old, new = (
            parse_chain(chain, (24, 24))(image, np.random.default_rng(seed))
            for chain in (first, text)
        )
        different += not np.array_equal(old, new)
    assert different
