"""Tests of both forms of RandAugment: pixels of the operations, and random draws."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vit_jax.data.transforms import randaugment, timm_randaugment
from vit_jax.data.transforms.randaugment import OPERATORS
from vit_jax.data.transforms.timm_randaugment import Policy, parse_policy

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
TENSORFLOW = np.load(GOLDEN / "augment_tensorflow.npz")
TIMM = np.load(GOLDEN / "augment_timm.npz")
SOURCE = TENSORFLOW["source"]
FILL = (124, 116, 104)
# Pixels, of 560, that floating point may round differently on another machine: the
# position is half-way between two pixels, or the mean a whole number.
ROUNDED = {"Rotate": 1, "Sharpness": 6}


class Draws:
    """A random generator with the draws that the references were made with."""

    def __init__(self, sign: str):
        self._sign = sign

    def random(self) -> float:
        return 0.75 if self._sign == "+" else 0.25

    def integers(self, size) -> np.ndarray:
        assert tuple(size) == SOURCE.shape[:2]
        return np.array([3, 20])  # centre of the cutout


@pytest.mark.parametrize("name", OPERATORS)
def test_operations_match_tensorflow_pixel_by_pixel(name):
    keys = [key for key in TENSORFLOW.files if key.startswith(f"{name}/")]
    changed = 0
    for key in keys:
        _, magnitude, sign = key.split("/")
        ours = randaugment.apply_operator(
            OPERATORS[name], SOURCE, float(magnitude) / 10, Draws(sign)
        )
        assert ours.dtype == np.uint8
        wrong = (ours != TENSORFLOW[key]).any(2).sum()
        assert wrong <= ROUNDED.get(name, 0), key
        changed += (ours != SOURCE).any()
    assert changed >= max(1, len(keys) - 2)


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", timm_randaugment.OPERATORS[True])
def test_operations_match_timm_pixel_by_pixel(name, increasing):
    operator = timm_randaugment.OPERATORS[increasing][name]
    keys = [key for key in TIMM.files if key.split("/")[2:3] == [name]]
    if any(key.startswith("1/") for key in keys):  # else the same in both tables
        keys = [key for key in keys if int(key[0]) == increasing]
    assert keys
    for key in keys:
        _, interpolation, _, magnitude, sign = key.split("/")
        ours = timm_randaugment.apply_operator(
            operator,
            SOURCE,
            float(magnitude) / 10,
            Draws(sign),
            timm_randaugment.RESAMPLING[interpolation or "bicubic"][0],
            FILL,
        )
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, TIMM[key], err_msg=key)


def test_quirks_of_tensorflows_form():
    ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 2, 3))

    def apply(name, magnitude, image=ramp):
        return randaugment.apply_operator(
            OPERATORS[name], image, magnitude / 10, np.random.default_rng(0)
        )

    # For 0 bits one is kept, for 8 all, for 9 and more one.
    for magnitude, mask in ((0, 0x80), (10, 0xF0), (15, 0xFC), (20, 0xFF), (25, 0x80)):
        np.testing.assert_array_equal(apply("Posterize", magnitude), ramp & mask)
    for magnitude, threshold in ((0, 0), (5, 128), (10, 0), (15, 128), (20, 0)):
        expected = np.where(ramp < threshold, ramp, 255 - ramp)
        np.testing.assert_array_equal(apply("Solarize", magnitude), expected)
    # Away from 196, whatever the image; for a larger image, away from white.
    square = np.full((224, 224, 3), 190, np.uint8)
    assert np.unique(apply("Contrast", 5, square)) == [190]
    assert np.unique(apply("Contrast", 10, square)) == [184]  # 196 − 1.9 · 6 = 184.6
    large = np.full((256, 300, 3), 250, np.uint8)
    assert np.unique(apply("Contrast", 20, large)) == [236]  # 255 − 3.7 · 5 = 236.5


def test_timm_posterize_to_no_bits_is_black():
    # Pillow did this at the time of the published models; now it raises an error.
    for increasing, level in ((True, 1.0), (False, 0.2)):
        operator = timm_randaugment.OPERATORS[increasing]["Posterize"]
        result = operator.apply(SOURCE, operator.argument(level, None))
        assert not result.any()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("magnitude", [0, 10, 30])
def test_grey_images_are_treated_as_equal_colours(name, magnitude):
    grey = SOURCE[:, :, 1:2]
    one, three = (
        randaugment.apply_operator(
            OPERATORS[name], image, magnitude / 10, np.random.default_rng(4)
        )
        for image in (grey, np.repeat(grey, 3, 2))
    )
    assert one.shape == grey.shape
    np.testing.assert_array_equal(one, three[:, :, :1])


@pytest.mark.parametrize("name", timm_randaugment.OPERATORS[True])
def test_grey_images_are_treated_as_equal_colours_by_timms(name):
    grey = SOURCE[:, :, 1:2]
    one, three = (
        timm_randaugment.apply_operator(
            timm_randaugment.OPERATORS[True][name],
            image,
            0.9,
            np.random.default_rng(4),
            Image.Resampling.BICUBIC,
            fill,
        )
        for image, fill in ((grey, FILL), (np.repeat(grey, 3, 2), (117,) * 3))
    )
    assert one.shape == grey.shape
    np.testing.assert_array_equal(one, three[:, :, :1])


def test_tensorflows_form_draws_each_operation_equally_often(monkeypatch):
    chosen = []
    for name, operator in OPERATORS.items():
        recording = operator._replace(
            apply=lambda image, *_, name=name: chosen.append(name) or image
        )
        monkeypatch.setitem(OPERATORS, name, recording)
    step, random = randaugment.randaugment(3, 10), np.random.default_rng(0)
    for _ in range(1600):
        step.apply(SOURCE, random)
    assert len(chosen) == 3 * 1600  # every layer applies an operation
    assert len(OPERATORS) == 16
    counts = [chosen.count(name) for name in OPERATORS]
    assert stats.chisquare(counts).pvalue > 0.01
    # Drawn with replacement; the layers are independent of each other.
    pairs = np.array(chosen).reshape(-1, 3)
    same = int((pairs[:, 0] == pairs[:, 1]).sum())
    assert stats.binomtest(same, 1600, 1 / 16).pvalue > 0.01


def test_timms_form_draws_each_operation_equally_often_and_half_of_the_time(
    monkeypatch,
):
    chosen, levels = [], []
    table = timm_randaugment.OPERATORS[True]
    for name in table:
        monkeypatch.setitem(
            table,
            name,
            timm_randaugment.Operator(
                lambda image, level, name=name: chosen.append(name) or image,
                lambda level, _: levels.append(level),
            ),
        )
    step = timm_randaugment.timm_randaugment("rand-m9-mstd0.5-inc1-n3")
    random = np.random.default_rng(0)
    for _ in range(3000):
        step.apply(SOURCE, random)
    assert stats.binomtest(len(chosen), 3 * 3000, 0.5).pvalue > 0.01
    assert len(table) == 15
    counts = [chosen.count(name) for name in table]
    assert stats.chisquare(counts).pvalue > 0.01
    # Normal around 0.9, clipped to 1, which affects 2.3 % of the draws.
    below = np.array([level for level in levels if level < 1])
    assert max(levels) == 1
    assert stats.binomtest(len(below), len(levels), stats.norm.cdf(2)).pvalue > 0.01
    cut = stats.truncnorm(-np.inf, 2, loc=0.9, scale=0.05)
    assert stats.kstest(below, cut.cdf).pvalue > 0.01


def test_signs_are_drawn_evenly():
    random = np.random.default_rng(0)
    negative = sum(randaugment.signed(2, random) == -2 for _ in range(1000))
    assert stats.binomtest(negative, 1000, 0.5).pvalue > 0.01
    assert abs(randaugment.signed(2, random)) == 2


def test_cutout_reaches_everywhere():
    argument = OPERATORS["Cutout"].argument
    random = np.random.default_rng(0)
    places = np.array([argument(1.0, (4, 6), random) for _ in range(2400)])
    assert set(places[:, 0]) == {40}
    counts = np.zeros((4, 6))
    np.add.at(counts, (places[:, 1], places[:, 2]), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


def test_pixels_from_outside_are_filled():
    even = np.full((8, 8, 3), 10, np.uint8)
    moved = randaugment.translate_x(even, 3)
    assert (moved[:, :5] == 10).all()
    assert (moved[:, 5:] == 128).all()
    for step, fill in (
        (timm_randaugment.timm_randaugment("rand-m10-n20"), [124, 116, 104]),
        (timm_randaugment.timm_randaugment("rand-m10-n20", fill=7), [7, 7, 7]),
    ):
        table = timm_randaugment.OPERATORS[False]
        assert step.random
        moved = timm_randaugment.move(
            table["TranslateY"].apply, even, 0.5, Image.Resampling.BICUBIC, tuple(fill)
        )
        assert (moved[:4] == 10).all()
        assert (moved[4:] == fill).all()


def test_interpolations_of_timms_form_are_drawn(monkeypatch):
    used = []

    def moving(picture, _, resample, fillcolor):
        used.append((resample, fillcolor))
        return picture

    table = timm_randaugment.OPERATORS[False]
    for name in table:
        operator = timm_randaugment.Operator(moving, lambda *_: 1.0, moves=True)
        monkeypatch.setitem(table, name, operator)
    random = np.random.default_rng(0)
    for interpolation, kinds in timm_randaugment.RESAMPLING.items():
        used.clear()
        step = timm_randaugment.timm_randaugment("rand-n2", interpolation, (1, 2, 3))
        for _ in range(400):
            step.apply(SOURCE, random)
        counts = [used.count((kind, (1, 2, 3))) for kind in kinds]
        assert sum(counts) == len(used)
        assert stats.chisquare(counts).pvalue > 0.01 if len(counts) > 1 else True
        assert len(kinds) == (2 if interpolation == "random" else 1)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rand-m9-mstd0.5-inc1", Policy(9, 0.5, True, 2)),
        ("rand-n3-m7", Policy(7, 0, False, 3)),
        ("rand-inc0-mstd1", Policy(10, 1, False, 2)),
        ("rand-mstd.25", Policy(10, 0.25, False, 2)),
        ("rand", Policy(10, 0, False, 2)),
    ],
)
def test_policies_in_timms_notation(text, policy):
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("augmix-m3", ["it begins with 'augmix', not 'rand'"]),
        ("rand-w0", [r"no section 'w0'\. .*There are: m9, mstd0\.5, inc1, n2"]),
        ("rand-m9-mmax15", ["no section 'mmax15'"]),
        ("rand-m", ["no section 'm'"]),
        ("rand-m9-", ["no section ''"]),
        ("rand-mstdinf", ["no section 'mstdinf'"]),
        ("rand-m9.5", [r"m=9\.5 must be a whole number, from 0 to 10"]),
        ("rand-m15", ["m=15 must be a whole number, from 0 to 10"]),
        ("rand-mstd101", ["mstd=101 must be a number, from 0 to 100"]),
        ("rand-inc2", ["inc=2 must be a whole number, from 0 to 1"]),
        ("rand-n0-m5-m6-p0.7", ["n=0 must", "m occurs twice", "no section 'p0.7'"]),
        (9, ["it begins with '9'"]),
    ],
)
def test_errors_explain_wrong_policies(text, messages):
    for message in ["expected one such as 'rand-m9-mstd0.5-inc1'", *messages]:
        with pytest.raises(ValueError, match=message):
            parse_policy(text)
