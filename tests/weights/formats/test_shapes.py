import pytest

from vit_jax.errors import UserError
from vit_jax.weights.formats.layout import Hints
from vit_jax.weights.formats.shapes import grid_of, numbers, sizes


@pytest.mark.parametrize(
    ("positions", "prefixes", "caller", "said", "expected"),
    [
        (17, [1], None, None, (1, (4, 4))),
        # A companion's size takes precedence over a square, and that over image_size.
        (17, [1], None, (8, 32), (1, (2, 8))),
        (17, [1], (8, 32), None, (1, (4, 4))),
        (13, [1], (8, 24), None, (1, (2, 6))),
        # A size that does not explain the number is ignored.
        (17, [1], None, (20, 20), (1, (4, 4))),
        # The most likely prefix, or the others if only these leave a grid.
        (17, [0, 1], None, None, (1, (4, 4))),
        (21, [5, 1], None, None, (5, (4, 4))),
    ],
)
def test_the_grid_of_positions(positions, prefixes, caller, said, expected):
    hints = Hints(image_size=caller)
    assert grid_of("p", positions, prefixes, (4, 4), hints, said) == expected


@pytest.mark.parametrize(
    ("positions", "prefixes", "sure", "expected"),
    [
        # It takes precedence over a companion, a square, and image_size.
        (145, [1], (36, 64), (1, (9, 16))),
        (17, [1, 0], (4, 68), (0, (1, 17))),
        (21, [5, 1], (16, 20), (1, (4, 5))),
    ],
)
def test_trained_image_size_takes_precedence(positions, prefixes, sure, expected):
    hints = Hints(image_size=(48, 48), trained_image_size=sure)
    assumed = []
    found = grid_of("p", positions, prefixes, (4, 4), hints, (48, 48), assumed)
    assert found == expected
    assert assumed == []


@pytest.mark.parametrize("said", [None, (16, 16)])
def test_a_wrong_trained_image_size_is_refused(said):
    hints = Hints(trained_image_size=(20, 16))
    with pytest.raises(UserError) as error:
        grid_of("p", 17, [1, 0], (4, 4), hints, said)
    assert "trained_image_size=(20, 16) has 5×4 patches" in str(error.value)
    assert "p has 16 or 17 positions of patches" in str(error.value)


@pytest.mark.parametrize(
    ("positions", "prefixes", "caller", "said", "sentence"),
    [
        (17, [1], None, None, None),
        (17, [1], (16, 16), None, None),
        (17, [1], (20, 20), None, None),
        # The companion resolves the ambiguity.
        (17, [1], (8, 32), (16, 16), None),
        (
            145,
            [1],
            (36, 64),
            None,
            "p may hold 12×12 patches after 1 other token or 9×16 patches after "
            "1 other token: assumed the first; if that is wrong, pass "
            "trained_image_size=(36, 64)",
        ),
        (
            9,
            [0, 1, 5],
            None,
            None,
            "p may hold 3×3 patches or 2×2 patches after 5 other tokens: assumed "
            "the first; if that is wrong, pass trained_image_size=(height, width)",
        ),
        (
            9,
            [0, 1, 5],
            (8, 8),
            None,
            "p may hold 2×2 patches after 5 other tokens or 3×3 patches: assumed "
            "the first; if that is wrong, pass trained_image_size=(height, width)",
        ),
    ],
)
def test_ambiguous_numbers_are_reported(positions, prefixes, caller, said, sentence):
    assumed = []
    hints = Hints(image_size=caller)
    grid_of("p", positions, prefixes, (4, 4), hints, said, assumed)
    assert assumed == ([] if sentence is None else [sentence])


@pytest.mark.parametrize("positions", [0, 1, 8])
def test_a_number_that_nothing_explains_is_refused(positions):
    with pytest.raises(UserError, match=r"p has \d positions .* not a square gri") as e:
        grid_of("p", positions, [1], (4, 4), Hints(image_size=(3, 3)))
    assert "trained_image_size=(height, width), to vit_jax.load" in str(e.value)


def test_numbers_of_blocks():
    names = ["block10/x", "block2/x", "block2/y", "block02/x", "block12345/x", "blocks"]
    assert numbers(names, "block", "/") == [2, 10]


def test_all_problems_with_sizes_are_reported_at_once():
    shapes = {"a": (1, 2), "b": (0,), "c": (3,)}
    assert sizes(shapes, {"a": 2, "c": None}) == [(1, 2), (3,)]
    with pytest.raises(UserError) as error:
        sizes(shapes, {"a": 3, "b": 1, "d": 1})
    for part in ("a has shape (1, 2), expected 3", "b is empty", "d is missing"):
        assert part in str(error.value)
