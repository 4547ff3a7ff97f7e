"""Tests of chains of operations written as text."""

import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from vit_jax.data.decode import UnsuitableImage, open_image
from vit_jax.data.transforms import chains
from vit_jax.data.transforms.chains import OPERATIONS, Chain, parse_chain, rescale_chain
from vit_jax.data.transforms.operations import Operation, keep_size
from vit_jax.data.transforms.resizing import resize_image
from vit_jax.errors import UserError
from vit_jax.weights.published.families import FAMILIES


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


RANDOM = (
    "inception_crop|flip_lr",
    "random_resized_crop",
    "resize_small|random_crop(padding=4)",
    "resize|randaugment(2, 10)",
    "resize|timm_randaugment('rand-m9-mstd0.5-inc1', 'random')",
    "resize|three_augment",
    "resize|color_jitter(0.3, 0.3, 0.3, 0.1)",
    "resize|blur",
)


@pytest.mark.parametrize("text", RANDOM)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_generator_gives_the_same_image(text, channels):
    chain, image = parse_chain(text, (16, 16)), noise(40, 40, channels)
    before = image.copy()
    seeds = [(0, position) for position in range(12)]
    np.random.seed(1)
    first = [chain(image, np.random.default_rng(seed)) for seed in seeds]
    np.random.seed(2)
    again = [chain(image, np.random.default_rng(seed)) for seed in seeds]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, before)
    assert {(one.shape, one.dtype.name) for one in first} == {
        ((16, 16, channels), "uint8")
    }
    assert len({one.tobytes() for one in first}) > 2


@pytest.mark.parametrize(
    "text",
    [
        "inception_crop|flip_lr",
        "random_resized_crop",
        "random_crop|flip_lr",
        "random_crop(padding=4)",
        "central_crop",
        "resize",
        "resize_small|central_crop",
    ],
)
def test_decoded_and_encoded_images_agree(text):
    file = io.BytesIO()
    picture = Image.fromarray(noise(12, 9)).resize((90, 120))
    picture.save(file, "JPEG", quality=95)
    chain, image = parse_chain(text, (16, 16)), open_image(file.getvalue())
    assert not isinstance(image, np.ndarray)
    for seed in range(8):
        found, expected = (
            chain(one, np.random.default_rng(seed)) for one in (image, image.decode())
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("text", "takes_any"),
    [
        ("random_resized_crop|flip_lr", True),
        ("resize_small|random_crop(padding=2)|flip_lr", True),
        ("resize|randaugment(1, 10)", False),
        ("resize|timm_randaugment", False),
        ("resize|three_augment", False),
        ("resize|color_jitter(0.1)", False),
        ("resize|grey", False),
        ("resize|solarize", False),
        ("resize|blur", False),
    ],
)
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_numbers_of_channels_work_or_are_refused(text, takes_any, channels):
    chain, random = parse_chain(text, (8, 8)), np.random.default_rng(0)
    image = noise(12, 10, channels)
    if takes_any:
        assert chain(image, random).shape == (8, 8, channels)
        return
    with pytest.raises(UserError, match=rf"a\.png: .*1 or 3 channels.* has {channels}"):
        chain(image, random, "a.png")


def test_documented_chains_parse():
    quoted = re.findall(r'"([^"]*)"', chains.__doc__)
    texts = [re.sub(r"\s+", " ", text) for text in quoted]
    assert len(texts) == 21
    for text in texts:
        chain = parse_chain(text, (224, 224))
        image = noise(300, 260 if text else 224)[: None if text else 224]
        result = chain(image, np.random.default_rng(0))
        assert result.shape == (224, 224, 3)
    used = {
        re.match(r"\w+", part)[0] for text in texts for part in text.split("|") if part
    }
    assert used == set(OPERATIONS)


def test_published_evaluation_chains_parse():
    chains = {family.eval_transform for family in FAMILIES.values()}
    assert len(chains) >= 5
    for text in chains:
        chain = parse_chain(text, (224, 224))
        assert not chain.random
        assert chain(noise(260, 240)).shape == (224, 224, 3)


def test_rescaling_changes_only_sizes():
    text = "resize_small(256)|grey()|solarize(128)|central_crop(size=224)"
    assert rescale_chain(text, (224, 224), (112, 112)) == (
        "resize_small(128)|grey()|solarize(128)|central_crop(size=112)"
    )


def test_empty_chain_keeps_the_pixels_and_checks_the_size():
    chain, image = parse_chain("", (8, 8)), noise(8, 8)
    np.testing.assert_array_equal(chain(image), image)
    with pytest.raises(UserError, match=r"a/b\.png is 8×9 .* takes 8×8.*'resize'"):
        chain(noise(8, 9), name="a/b.png")


def test_chain_is_random_if_an_operation_is():
    for text, expected in {
        "": False,
        "resize_small(9)|central_crop": False,
        "resize|flip_lr": True,
        "random_crop": True,
        "inception_crop": True,
        "resize|grey|solarize(100)": False,
        **dict.fromkeys(RANDOM, True),
    }.items():
        assert parse_chain(text, (8, 8)).random is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resise", r"no operation 'resise'; did you mean 'resize'\?"),
        ("resize|flip", r"no operation 'flip'.* 'flip_lr'"),
        ("resize(", "'resize\\(' in the chain .* cannot be read"),
        ("resize||flip_lr", "'' in the chain .* cannot be read"),
        ("resize(open('x'))", "cannot be read"),
        ("resize(size)", "cannot be read"),
        ("resize(8, 8)", r"no interpolation 8\. There are: nearest, bilinear, bicubic"),
        ("resize(8, [1])", r"no interpolation \[1\]\. There are"),
        ("resize(8, 'cubic')", r"no interpolation 'cubic'; did you mean 'bicubic'\?"),
        (
            "inception_crop(interpolation='bicubic_antialiased')",
            r"mean 'bicubic_antialias'\?",
        ),
        (
            "resize_small(8, 'area', 'up')",
            r"no rounding 'up'\. There are: nearest, down",
        ),
        ("central_crop(8, 'dawn')", r"no rounding 'dawn'; did you mean 'down'\?"),
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
        ("resize|random_crop(padding=8)", "padding=8 mirrors more pixels than 8×8 has"),
        ("resize(3)|random_crop(padding=2)", "cannot cut 8×8 out of 7×7"),
        ("randaugment(2)", "argument: 'magnitude'; it takes layers, magnitude"),
        ("randaugment(0, 9)", "layers=0 must be a whole number, at least 1"),
        ("randaugment(2, 31)", "magnitude=31 must be a number, from 0 to 30"),
        ("randaugment(2, True)", "magnitude=True must be a number"),
        (
            "timm_randaugment(interpolation='nearest')",
            "There are: bilinear, bicubic, r",
        ),
        ("timm_randaugment(fill=(1, 2))", r"fill=\(1, 2\) must be one number or three"),
        (
            "timm_randaugment(fill=256)",
            "fill=256 must be a whole number, from 0 to 255",
        ),
        ("three_augment(0.5)", "too many positional arguments; it takes nothing"),
        ("solarize(257)", "threshold=257 must be a whole number, from 0 to 256"),
        ("blur(0)", "radius_min=0 and radius_max=2.0 must be numbers"),
        ("color_jitter", "all amounts are 0; expected at least one above 0"),
        ("color_jitter(0.3, -1)", "contrast=-1 must be a number, at least 0"),
        ("color_jitter(hue=0.6)", "hue=0.6 must be a number, from 0 to 0.5"),
        ("gray", r"no operation 'gray'; did you mean 'grey'\?"),
    ],
)
def test_errors_explain_unreadable_chains(text, message):
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
        "randaugment",
        "timm_randaugment",
        "three_augment",
        "color_jitter",
        "grey",
        "solarize",
        "blur",
    }


def test_error_of_too_small_image_names_it():
    with pytest.raises(UserError, match=r"tiny\.png: cannot cut 8×8 out of 7×9"):
        parse_chain("central_crop", (8, 8))(noise(7, 9), name="tiny.png")


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            RuntimeError("gone"),
            "x.png: RuntimeError: gone (in the chain 'a')",
        ),
        (IndexError(3), "x.png: IndexError: 3 (in the chain 'a')"),
        (ValueError("it is odd"), "x.png: it is odd (in the chain 'a')"),
        (cv2.error("empty"), "x.png: error: empty (in the chain 'a')"),
        (RuntimeError("a\n  b\n"), "x.png: RuntimeError: a b (in the chain 'a')"),
    ],
)
def test_whatever_an_operation_raises_names_the_image(raised, message):
    def apply(image, rng):
        raise raised

    chain = Chain("a", (4, 4), (Operation(apply, keep_size),))
    with pytest.raises(UnsuitableImage) as error:
        chain(noise(4, 4), name="x.png")
    assert str(error.value) == message
    assert error.value.__cause__ is raised


def test_error_of_too_little_memory_names_the_image():
    def apply(image, rng):
        raise MemoryError

    chain = Chain("a", (4, 4), (Operation(apply, keep_size),))
    with pytest.raises(UserError, match=r"^x\.png: there is not enough memory for"):
        chain(noise(4, 4), name="x.png")
