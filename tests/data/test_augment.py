"""The text that chains operations."""

import numpy as np
import pytest

from vit_jax.data.augment import OPERATIONS, parse_chain
from vit_jax.data.resizing import resize_image
from vit_jax.errors import UserError


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


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
        ("random_resized_crop(area_min=0)", "area_min=0 and area_max=1.0 must be"),
        ("random_crop(padding=1.5)", "padding=1.5 must be a whole number, at least 0"),
        ("resize|random_crop(padding=8)", "padding=8 mirrors more than 8×8 has"),
        ("resize(3)|random_crop(padding=2)", "cannot cut 8×8 out of 7×7"),
        ("three_augment(0.5)", "too many positional arguments; it takes nothing"),
        ("solarize(257)", "threshold=257 must be a whole number, from 0 to 256"),
        ("blur(0)", "radius_min=0 and radius_max=2.0 must be numbers"),
        ("color_jitter", "all amounts are 0: nothing would change"),
        ("color_jitter(0.3, -1)", "contrast=-1 must be a number, at least 0"),
        ("color_jitter(hue=0.6)", "hue=0.6 must be a number, from 0 to 0.5"),
        ("gray", r"no operation 'gray'\. Did you mean 'grey'\?"),
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
        "random_resized_crop",
        "random_crop",
        "central_crop",
        "resize",
        "resize_small",
        "flip_lr",
        "three_augment",
        "color_jitter",
        "grey",
        "solarize",
        "blur",
    }


def test_too_small_an_image_is_named():
    with pytest.raises(UserError, match=r"tiny\.png: cannot cut 8×8 out of 7×9"):
        parse_chain("central_crop", (8, 8))(noise(7, 9), name="tiny.png")
