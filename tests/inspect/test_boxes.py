import numpy as np
import pytest
from scipy.linalg import eigh

from vit_jax.errors import UserError
from vit_jax.inspect.boxes import (
    Box,
    attention_box,
    box_of,
    check,
    covered,
    largest,
    overlap,
    tokencut_box,
    widened,
)

WEIGHTS = np.array([0.4, 0.05, 0.1, 0.2, 0.15, 0.1])


def test_the_largest_sixty_percent_of_inspects_example():
    # INSPECT.md, from DINO's visualize_attention.py: patches 0 and 3.
    kept = largest(WEIGHTS.reshape(2, 3), 0.6)
    assert kept.tolist() == [[True, False, False], [True, False, False]]
    # In one row they do not touch: the region is the maximum alone.
    assert largest(WEIGHTS[None], 0.6).tolist() == [[True, 0, 0, True, 0, 0]]
    found = attention_box(WEIGHTS[None], (10, 60), padding=0)
    assert found.box == (0, 0, 10, 10)
    assert found.score == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(8))
def test_no_fewer_weights_make_up_the_mass(seed):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(35)).reshape(5, 7)
    for mass in (0.2, 0.6, 0.9):
        kept = largest(weights, mass)
        assert weights[kept].sum() >= mass
        assert weights[kept].sum() - weights[kept].min() < mass
        assert weights[kept].min() > weights[~kept].max()


def test_rounding_does_not_decide():
    rng = np.random.default_rng(0)
    for _ in range(50):
        order = rng.permutation(6)
        for weights in (WEIGHTS, WEIGHTS.astype(np.float32), 7 * WEIGHTS):
            region = attention_box(weights[order][None], (6, 6), padding=0).map
            kept = largest(region, 0.6)[0]
            assert sorted(order[kept]) == [0, 3]


def test_equal_weights_are_kept_together():
    flat = attention_box(np.ones((3, 4)), (30, 40))
    assert flat.box == (0, 0, 40, 30) and flat.score == 1
    weights = np.array([[5.0, 1, 1], [1, 1, 1]])
    assert largest(weights / 10, 0.6).all()  # 5 of 10 are too few
    assert largest(weights / 10, 0.5).sum() == 1
    assert largest(weights / 10, 1e-9).sum() == 1


def test_the_part_of_the_maximum_counts_not_the_heaviest():
    weights = np.full((5, 6), 1e-3)
    weights[1, 1] = 3.0
    weights[3:5, 3:6] = 2.0  # heavier
    weights[2, 2] = 2.0  # touches both at a corner
    found = attention_box(weights, (50, 60), mass=0.9, padding=0)
    assert found.box == (10, 10, 20, 20)
    assert np.argwhere(found.region).tolist() == [[1, 1]]
    weights[1, 2] = 2.0  # a bridge, by sides
    found = attention_box(weights, (50, 60), mass=0.9, padding=0)
    assert found.box == (10, 10, 30, 30)
    assert found.score == pytest.approx(7 / weights.sum())


def test_boxes_lie_on_images_of_any_size():
    region = np.zeros((4, 3), bool)
    region[1, 1:] = True
    assert box_of(region, (4, 3)) == (1, 1, 3, 2)
    assert box_of(region, (40, 60)) == (20, 10, 60, 20)
    # Rows of 2.5 pixels: all that the patch touches. Columns of 1/3 of a pixel.
    assert box_of(region, (10, 1)) == (0, 2, 1, 5)
    # 1.1 · 50 = 55 and 0.7 · 30 = 21, which floats miss by their rounding.
    padded = box_of(np.eye(2, dtype=bool)[:1], (100, 100), padding=0.1)
    assert padded == (0, 0, 55, 100)
    assert box_of(np.eye(3, dtype=bool)[1:2], (90, 90), padding=0.3) == (21, 0, 69, 90)


@pytest.mark.parametrize("seed", range(4))
def test_a_box_is_the_smallest_that_contains_the_patches(seed):
    rng = np.random.default_rng(seed)
    region = rng.random((5, 7)) < 0.1
    region[2, 3] = True
    height, width = (int(side) for side in rng.integers(20, 90, 2))
    # Whether each pixel has a part in a patch, by its two ends.
    rows, columns = (
        np.array([[pixel, pixel + 1 - 1e-6] for pixel in range(side)]) * n / side
        for side, n in ((height, 5), (width, 7))
    )
    rows, columns = rows.astype(int), columns.astype(int)
    painted = np.zeros((height, width), bool)
    for i in range(2):
        for j in range(2):
            painted |= region[np.ix_(rows[:, i], columns[:, j])]
    y, x = np.nonzero(painted)
    expected = (x.min(), y.min(), x.max() + 1, y.max() + 1)
    assert box_of(region, (height, width)) == expected


def test_padding_is_in_patches_and_ends_with_the_image():
    region = np.zeros((4, 6), bool)
    region[1, 2] = True
    assert box_of(region, (40, 120)) == (40, 10, 60, 20)
    assert box_of(region, (40, 120), padding=1) == (20, 0, 80, 30)
    assert box_of(region, (40, 120), padding=0.5) == (30, 5, 70, 25)
    assert box_of(region, (40, 120), padding=2) == (0, 0, 100, 40)
    assert box_of(region, (40, 120), padding=99) == (0, 0, 120, 40)


def test_a_box_is_widened_to_an_aspect_within_the_image():
    image = (100, 200)
    assert widened(Box(90, 40, 110, 60), image, 2) == (80, 40, 120, 60)
    assert widened(Box(90, 40, 110, 60), image, 0.5) == (90, 30, 110, 70)
    assert widened(Box(90, 40, 110, 60), image, 1) == (90, 40, 110, 60)
    # Where the image ends, the other end grows more.
    assert widened(Box(5, 40, 25, 60), image, 2) == (0, 40, 40, 60)
    assert widened(Box(180, 40, 200, 60), image, 2) == (160, 40, 200, 60)
    # It is never cut, so the aspect may not be reached.
    assert widened(Box(0, 0, 200, 50), image, 1) == (0, 0, 200, 100)
    assert widened(Box(10, 0, 40, 100), image, 4 / 3) == (0, 0, 133, 100)
    region = np.zeros((4, 8), bool)
    region[1, 2] = True
    assert box_of(region, image, aspect=2) == (38, 25, 88, 50)


@pytest.fixture
def two_clusters():
    """Returns keys of a grid 6×8: a rectangle of one kind, the rest of another."""
    rng = np.random.default_rng(0)
    kinds = np.zeros((6, 8), int)
    kinds[2:4, 5:7] = 1
    directions = np.array([[1.0, 0, 0.1], [-0.2, 1, 0]])
    keys = directions[kinds] + 0.05 * rng.normal(size=(6, 8, 3))
    return keys * rng.uniform(0.5, 2, size=(6, 8, 1)), kinds == 1


def test_tokencut_finds_the_smaller_of_two_clusters(two_clusters):
    keys, region = two_clusters
    found = tokencut_box(keys, (60, 160), padding=0)
    assert found.box == (100, 20, 140, 40)
    assert (found.region == region).all()
    assert (found.map[region] > 0).all() and found.map[region].min() > found.map.mean()
    # Only edges of 1e-5 are cut: 4·44 of them, beside degrees of 4 and of 44.
    cut, degrees = 4 * 44 * 1e-5, np.array([4 * 4, 44 * 44])
    assert found.score == pytest.approx((cut / degrees).sum(), rel=1e-3)
    padded = tokencut_box(keys, (60, 160), aspect=3)
    assert padded.box == (40, 10, 160, 50)


def test_tokencut_solves_the_papers_problem(two_clusters):
    keys = two_clusters[0][:3, 3:7]  # both kinds
    rows = keys.reshape(12, 3)
    cosines = rows @ rows.T / np.outer(*2 * [np.linalg.norm(rows, axis=1)])
    edges = np.where(cosines > 0.2, 1, 1e-5)
    degrees = np.diag(edges.sum(1))
    values, vectors = eigh(degrees - edges, degrees)
    found = tokencut_box(keys, (3, 4))
    assert found.score == pytest.approx(values[1])
    y = found.map.reshape(-1)
    np.testing.assert_allclose(
        (degrees - edges) @ y, found.score * degrees @ y, atol=1e-9
    )
    assert abs(y @ degrees @ vectors[:, 1]) == pytest.approx(1)


def test_the_seed_is_foreground_whatever_the_sign(two_clusters, monkeypatch):
    keys, region = two_clusters

    def negated(*arguments, **keywords):
        values, vectors = eigh(*arguments, **keywords)
        return values, -vectors

    monkeypatch.setattr("scipy.linalg.eigh", negated)
    found = tokencut_box(keys, (60, 160), padding=0)
    assert (found.region == region).all()
    assert found.map.flat[np.abs(found.map).argmax()] > 0


def test_only_the_part_of_the_seed_is_boxed():
    kinds = np.zeros((6, 9), int)
    kinds[1:3, 1:3] = 1
    kinds[4, 7] = 1  # as like to them, but apart
    keys = np.eye(2)[kinds]
    found = tokencut_box(keys, (60, 90), padding=0)
    assert found.box in ((10, 10, 30, 30), (70, 40, 80, 50))
    assert found.region[kinds == 1].any() and not found.region[kinds == 1].all()


def test_centred_keys_ignore_what_all_have_in_common(two_clusters):
    keys, region = two_clusters
    keys = keys / np.linalg.norm(keys, axis=2, keepdims=True)
    shifted = keys + np.array([50.0, 50, 50])
    found = tokencut_box(shifted, (60, 160), padding=0, centred=True)
    np.testing.assert_array_equal(found.region, region)
    same = tokencut_box(keys, (60, 160), padding=0, centred=True)
    assert same.box == found.box
    with pytest.raises(UserError, match=r"there is no cut: all pairs .* above 0\.2"):
        tokencut_box(shifted, (60, 160))


def test_keys_without_a_cut_are_refused():
    with pytest.raises(UserError, match="there is no cut: no pair of patches"):
        tokencut_box(np.eye(6).reshape(2, 3, 6), (2, 3))
    with pytest.raises(UserError, match=r"there is no cut: no pair .*: attention$"):
        tokencut_box(np.ones((2, 3, 4)), (2, 3), centred=True)
    with pytest.raises(UserError, match="the input has only 2"):
        tokencut_box(np.ones((1, 2, 4)), (2, 3))
    keys = np.ones((2, 3, 4))
    keys[1, 1, 1] = np.nan
    with pytest.raises(UserError, match="the keys are not finite"):
        tokencut_box(keys, (2, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_weights_that_are_none_are_refused(value):
    weights = WEIGHTS.reshape(2, 3).copy()
    weights[1, 1] = value
    with pytest.raises(UserError, match="damaged or diverged"):
        attention_box(weights, (2, 3))
    with pytest.raises(UserError, match="zero everywhere"):
        attention_box(np.zeros((2, 3)), (2, 3))


def test_all_bad_arguments_are_named():
    with pytest.raises(UserError) as error:
        check(mass=1.0, padding=-1.0, aspect=0.0)
    assert str(error.value).splitlines() == [
        "mass=1.0: expected a share of the attention above 0 and below 1, such as 0.6",
        "padding=-1.0: expected a number of patches, 0 or more, such as 1",
        "aspect=0.0: expected width / height, above 0",
    ]
    with pytest.raises(UserError, match="mass=0"):
        attention_box(np.ones((2, 2)), (2, 2), mass=0)
    with pytest.raises(UserError, match="padding=nan"):
        box_of(np.ones((2, 2), bool), (2, 2), padding=np.nan)


def test_covered_and_overlap():
    box, other = Box(0, 0, 10, 10), Box(5, 0, 15, 20)
    assert covered(box, other) == 50 / 200
    assert covered(other, box) == 50 / 100
    assert overlap(box, other) == overlap(other, box) == 50 / 250
    assert overlap(box, box) == 1
    assert covered(box, Box(20, 20, 30, 30)) == 0
