import pytest

from vit_jax.errors import UserError
from vit_jax.weights.formats.layout import Hints
from vit_jax.weights.formats.shapes import grid_of, numbers, sizes


@pytest.mark.parametrize(
    ("positions", "prefixes", "caller", "said", "expected"),
    [
        (17, [1], None, None, (1, (4, 4))),
        # A companion's size counts before a square, the caller's after it.
        (17, [1], None, (8, 32), (1, (2, 8))),
        (17, [1], (8, 32), None, (1, (4, 4))),
        (13, [1], (8, 24), None, (1, (2, 6))),
        # One that does not explain the number counts nothing.
        (17, [1], None, (20, 20), (1, (4, 4))),
        # The most likely prefix first, the others if only they leave a grid.
        (17, [0, 1], None, None, (1, (4, 4))),
        (21, [5, 1], None, None, (5, (4, 4))),
    ],
)
def test_the_grid_of_positions(positions, prefixes, caller, said, expected):
    hints = Hints(image_size=caller)
    assert grid_of("p", positions, prefixes, (4, 4), hints, said) == expected


@pytest.mark.parametrize("positions", [0, 1, 8])
def test_a_number_that_nothing_explains(positions):
    with pytest.raises(UserError, match=r"p has \d positions .* no square grid"):
        grid_of("p", positions, [1], (4, 4), Hints(image_size=(3, 3)))


def test_numbers_of_blocks():
    names = ["block10/x", "block2/x", "block2/y", "block02/x", "block12345/x", "blocks"]
    assert numbers(names, "block", "/") == [2, 10]


def test_all_that_is_wrong_with_sizes_at_once():
    shapes = {"a": (1, 2), "b": (0,), "c": (3,)}
    assert sizes(shapes, {"a": 2, "c": None}) == [(1, 2), (3,)]
    with pytest.raises(UserError) as error:
        sizes(shapes, {"a": 3, "b": 1, "d": 1})
    for part in ("a has shape (1, 2), expected 3", "b is empty", "d is missing"):
        assert part in str(error.value)
