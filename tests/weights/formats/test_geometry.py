"""Conversion between chains of operations and the resizing of other libraries."""

import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.weights.formats.geometry import (
    Geometry,
    difference,
    from_chain,
    to_chain,
    usual_spelling,
)

SIZE = (16, 24)
CHAINS = {
    "resize": Geometry(False, SIZE, "bilinear"),
    "resize(interpolation='area')": Geometry(False, SIZE, "area"),
    "resize(32)|central_crop": Geometry(False, (32, 32), "bilinear"),
    "resize((20, 30), 'bicubic')|central_crop": Geometry(False, (20, 30), "bicubic"),
    "resize_small(32)|central_crop": Geometry(True, (32, 32), "area"),
    "resize_small((16, 24), 'nearest')|central_crop": Geometry(True, SIZE, "nearest"),
    "resize_small(32, 'bicubic_antialias', 'down')|central_crop": Geometry(
        True, (32, 32), "bicubic_antialias", "down"
    ),
    "resize_small(32, rounding='down')|central_crop(rounding='nearest')": Geometry(
        True, (32, 32), "area", "down", "nearest"
    ),
    "resize((19, 24))|central_crop(rounding='nearest')": Geometry(
        False, (19, 24), "bilinear", crop_rounding="nearest"
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_both_directions(chain):
    assert to_chain(CHAINS[chain], SIZE) == chain
    assert from_chain(Preprocessing(SIZE, 3, chain)) == CHAINS[chain]


@pytest.mark.parametrize(
    ("chain", "geometry"),
    [
        ("resize(size=(16, 24))", Geometry(False, SIZE, "bilinear")),
        (" resize_small | central_crop ", Geometry(True, SIZE, "area")),
        (
            "resize(32, interpolation='area')|central_crop",
            Geometry(False, (32,) * 2, "area"),
        ),
        (
            "resize_small(rounding='down', size=32)|central_crop((16, 24), 'nearest')",
            Geometry(True, (32, 32), "area", "down", "nearest"),
        ),
    ],
)
def test_other_spellings(chain, geometry):
    assert from_chain(Preprocessing(SIZE, 3, chain)) == geometry


@pytest.mark.parametrize(
    "chain",
    [
        "",
        "central_crop",
        "resize_small((16, 24))",
        "resize(32)|resize",
        "resize(32)|resize_small|resize",
    ],
)
def test_other_chains_are_not_geometries(chain):
    assert from_chain(Preprocessing(SIZE, 3, chain)) is None


def test_rounding_without_effect_is_left_out():
    squashed = Geometry(False, (18, 24), "area", "down", "nearest")
    assert to_chain(squashed, SIZE) == "resize((18, 24), 'area')|central_crop"
    assert (
        to_chain(squashed._replace(size=SIZE), SIZE) == "resize(interpolation='area')"
    )


def test_usual_spelling():
    spelled = Preprocessing(SIZE, 3, " resize_small | central_crop(size=(16, 24)) ")
    assert usual_spelling(spelled) == "resize_small((16, 24))|central_crop"
    other = Preprocessing(SIZE, 3, "central_crop")
    assert usual_spelling(other) == "central_crop"


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (
            "resize(interpolation='bilinear_antialias')",
            "resize",
            "bilinear with antialiasing instead of bilinear without antialiasing",
        ),
        (
            "resize(28, 'area')|central_crop",
            "resize_small(30, 'bicubic')|central_crop",
            "squashed instead of keeping the aspect ratio, resized to 28×28 instead of "
            "30×30, area instead of bicubic without antialiasing",
        ),
        (
            "resize_small(30)|central_crop",
            "resize(30, 'area')|central_crop",
            "keeping the aspect ratio instead of squashed",
        ),
        (
            "resize_small(32, rounding='down')|central_crop",
            "resize_small(32)|central_crop",
            "sides and offsets rounded differently",
        ),
        ("resize", "central_crop", "other operations"),
    ],
)
def test_differences_in_words(theirs, ours, words):
    assert difference(theirs, Preprocessing(SIZE, 3, ours)) == words
