"""Tests of a model's preprocessing: its values and its arithmetic."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.data.decode import DecodeError
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.transforms.resizing import resize_image
from vit_jax.errors import UserError


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing((8, 12)),
        Preprocessing((8, 8), channels=1, eval_transform="resize_small(9)|resize"),
        Preprocessing((4, 4), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ],
)
def test_survives_json(preprocessing):
    values = json.loads(json.dumps(preprocessing.to_dict()))
    assert Preprocessing.from_dict(values) == preprocessing


def test_from_dict_rejects_other_keys():
    values = Preprocessing((8, 8)).to_dict()
    del values["std"]
    with pytest.raises(UserError, match=r"missing \['std'\], unknown \['crop'\]"):
        Preprocessing.from_dict({**values, "crop": 0.9})


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_both_ends_of_the_range_are_exact(array):
    images = array(np.array([0, 255], np.uint8).reshape(1, 2, 1, 1).repeat(3, 3))
    values = Preprocessing((2, 1)).normalize(images)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(values)[0, 0, 0], [-1, -1, -1])
    np.testing.assert_array_equal(np.asarray(values)[0, 1, 0], [1, 1, 1])


def test_mean_and_std_are_per_channel_in_units_of_one():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = np.full((2, 2, 3), 128, np.uint8)
    preprocessing = Preprocessing((2, 2), mean=mean, std=std)
    expected = (128 / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(preprocessing.normalize(images)[1, 1], expected, 1e-6)
    jitted = jax.jit(preprocessing.normalize)(images[None])
    np.testing.assert_allclose(np.asarray(jitted)[0, 0, 0], expected, 1e-6)


def test_one_number_serves_every_channel():
    assert Preprocessing((8, 8), mean=(0.5,)).mean == (0.5, 0.5, 0.5)
    grey = Preprocessing((8, 8), channels=1)
    assert grey.mean == (0.5,)
    assert grey.normalize(np.zeros((8, 8, 1), np.uint8)).shape == (8, 8, 1)


def test_bytes_path_and_array_agree(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "x.png"
    path.write_bytes(png(pixels))
    preprocessing = Preprocessing((8, 12))
    expected = resize_image(pixels, (8, 12))
    for image in (pixels, png(pixels), path, str(path)):
        np.testing.assert_array_equal(preprocessing.prepare(image), expected)


def test_channels_follow_the_model():
    colour, grey = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    one, three = Preprocessing((4, 4), channels=1), Preprocessing((4, 4))
    for image in (colour, grey, png(colour), png(grey)):
        assert one.prepare(image).shape == (4, 4, 1)
        assert three.prepare(image).shape == (4, 4, 3)


def test_errors_of_prepare_name_the_image(tmp_path):
    preprocessing = Preprocessing((4, 4))
    with pytest.raises(DecodeError, match=r"gone\.png cannot be read: No such file"):
        preprocessing.prepare(tmp_path / "gone.png")
    with pytest.raises(DecodeError, match="cannot be read: Is a directory"):
        preprocessing.prepare(tmp_path)
    with pytest.raises(UserError, match="array of float64"):
        preprocessing.prepare(np.zeros((4, 4, 3)))
    with pytest.raises(UserError, match="is a list; expected a path"):
        preprocessing.prepare([1])


def test_all_wrong_values_are_listed():
    with pytest.raises(UserError) as error:
        Preprocessing((0, 8), mean=(0.1, 0.2), std=(0.0,))
    for part in ("image_size=(0, 8)", "mean=(0.1, 0.2)", "std="):
        assert part in str(error.value)


def test_evaluation_must_be_deterministic():
    with pytest.raises(UserError, match=r"'resize\|flip_lr' has a random op"):
        Preprocessing((8, 8), eval_transform="resize|flip_lr")


@pytest.mark.parametrize(
    ("chain", "size", "expected"),
    [
        ("resize", (8, 16), "resize"),
        ("", (8, 16), ""),
        (
            "resize_small(256)|central_crop",
            (224, 224),
            "resize_small(256)|central_crop",
        ),
        (
            "resize_small(256)|central_crop",
            (384, 384),
            "resize_small(439)|central_crop",
        ),
        (
            "resize_small(size=(248, 248), interpolation='bicubic')|central_crop(224)",
            (112, 448),
            "resize_small(size=(124, 496), interpolation='bicubic')"
            "|central_crop((112, 448))",
        ),
    ],
)
def test_other_sizes_scale_with_the_image_size(chain, size, expected):
    old = Preprocessing((224, 224), eval_transform=chain)
    new = old.for_images(size, 3)
    assert new == dataclasses.replace(old, image_size=size, eval_transform=expected)
    if chain:
        assert new.prepare(np.zeros((9, 7, 3), np.uint8)).shape == (*size, 3)


def test_new_channels_get_the_average():
    old = Preprocessing((4, 4), mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4))
    new = old.for_images((4, 4), 2)
    assert (new.mean, new.std) == (pytest.approx((0.3, 0.3)), pytest.approx((0.3, 0.3)))
    assert old.for_images((4, 4), 3) == old
