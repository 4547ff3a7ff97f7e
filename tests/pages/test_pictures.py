import base64
import io

import numpy as np
import PIL.Image
import pytest

from vit_jax.pages import pictures


def test_values_are_scaled_to_a_unit():
    np.testing.assert_allclose(
        pictures.scaled(np.array([-2.0, 0.0, np.nan, 2.0, np.inf])), [0, 0.5, 0, 1, 0]
    )
    np.testing.assert_array_equal(pictures.scaled(np.full((2, 3), 7.0)), 0)
    np.testing.assert_array_equal(pictures.scaled(np.full(2, np.nan)), 0)


def test_the_largest_value_is_the_brightest():
    colours = pictures.coloured(np.array([[0.0, 1.0, 2.0]]))
    assert colours.shape == (1, 3, 3)
    # The ends of viridis, as published.
    np.testing.assert_array_equal(colours[0, 0], [68, 1, 84])
    np.testing.assert_array_equal(colours[0, 2], [253, 231, 36])


def test_a_patch_becomes_a_rectangle():
    small = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    large = pictures.enlarged(small, (4, 6))
    assert large.shape == (4, 6, 3)
    np.testing.assert_array_equal(large[:, :3], 0)
    np.testing.assert_array_equal(large[:, 3:], 255)


def test_a_map_lies_over_its_image():
    image = np.full((4, 6, 3), 100, np.uint8)
    values = np.array([[0.0, 1.0]])
    found = pictures.overlaid(image, values, share=0.5, method="nearest")
    expected = np.round(50 + np.array([[68, 1, 84], [253, 231, 36]]) / 2)
    np.testing.assert_array_equal(found[0, 0], expected[0])
    np.testing.assert_array_equal(found[-1, -1], expected[1])


def test_a_box_is_drawn_within_the_image():
    image = np.zeros((10, 12, 3), np.uint8)
    found = pictures.with_box(image, (2, 3, 12, 10))
    assert found[3, 2].any()
    assert found[9, 11].any()
    assert not found[2].any()
    assert not found[:, 1].any()
    assert not image.any()


def test_pictures_side_by_side():
    parts = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    whole = pictures.side_by_side(parts, 2, gap=1)
    assert whole.shape == (5, 7, 3)
    assert [whole[y, x, 0] for y, x in ((0, 0), (0, 4), (3, 0))] == [10, 20, 30]
    assert (whole[2] == 255).all()
    assert (whole[3, 4] == 255).all()
    assert pictures.side_by_side(parts[:1], 5).shape == (2, 3, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_an_address_contains_its_picture(kind):
    image = np.full((5, 4, 3), 90, np.uint8)
    head, _, content = pictures.data_uri(image, kind).partition(",")
    assert head == f"data:image/{kind};base64"
    read = PIL.Image.open(io.BytesIO(base64.b64decode(content)))
    np.testing.assert_allclose(np.asarray(read), image, atol=0 if kind == "png" else 2)
