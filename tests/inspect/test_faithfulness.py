"""Deletion and insertion, on scores whose curves are known."""

import jax
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect import cosine_to
from vit_jax.inspect.faithfulness import (
    area,
    blurred,
    cost,
    curves,
    deletion,
    insertion,
    random_baseline,
    ranks,
    score_of,
)

GRID = (3, 4)
REGION = np.zeros((1, *GRID))
REGION[0, 1:, 1:3] = 1.0  # 4 of 12 patches


def share_visible(images, rows):
    """The share of the region's pixels that are as in an image of ones."""
    del rows
    region = np.kron(REGION[0], np.ones((2, 2))) > 0
    return (images[:, region] == 1).mean(axis=(1, 2))


ONES = np.ones((1, 6, 8, 3), np.float32)
DELETED = deletion(ONES)
REVEALED = DELETED[::-1]


def areas(order, ends):
    return area(curves(share_visible, ends, order))[0]


def test_area_of_a_curve():
    assert area(np.array([0.9, 0.7, 0.4, 0.1, 0.05])) == pytest.approx(0.41875)


def test_the_regions_map_is_best_and_its_inverse_worst():
    best, worst = ranks(REGION), ranks(-REGION)
    random = random_baseline(share_visible, DELETED, GRID)
    # The share falls from 1 to 0 in 4 of 12 steps, or in the last 4.
    assert areas(best, DELETED) == pytest.approx(2 / 12)
    assert areas(worst, DELETED) == pytest.approx(10 / 12)
    assert areas(best, REVEALED) == pytest.approx(10 / 12)
    assert areas(worst, REVEALED) == pytest.approx(2 / 12)
    assert random.shape == (5, 1, 13)
    assert (area(random) > 2 / 12).all() and (area(random) < 10 / 12).all()
    assert len(set(area(random)[:, 0])) > 1
    again = random_baseline(share_visible, DELETED, GRID)
    np.testing.assert_array_equal(random, again)


def test_equal_patches_are_ranked_row_by_row():
    maps = np.array([[[1, 2, 1], [2, 0, 1]]])
    assert ranks(maps).tolist() == [[[2, 0, 3], [1, 5, 4]]]
    assert ranks(maps, least_first=True).tolist() == [[[1, 4, 2], [5, 0, 3]]]


def test_few_steps_read_the_same_curve():
    whole = curves(share_visible, DELETED, ranks(REGION))
    few = curves(share_visible, DELETED, ranks(REGION), steps=5)
    np.testing.assert_array_equal(few, whole[:, [0, 2, 4, 7, 9, 12]])
    assert cost(GRID, 3, 5) == 18
    assert cost(GRID, 3) == 39


def test_progress_counts_images_and_batches_do_not_matter():
    done = []
    expected = curves(share_visible, DELETED, ranks(REGION))
    found = curves(
        share_visible, DELETED, ranks(REGION), batch_size=5, progress=done.append
    )
    np.testing.assert_array_equal(found, expected)
    assert done == [5, 5, 3]


def test_a_blurred_point_is_the_gaussian():
    image = np.zeros((1, 21, 25, 1), np.float32)
    image[0, 10, 12] = 1
    found = blurred(image)
    weights = np.exp(-(np.arange(-5, 6) ** 2) / 50)
    expected = np.outer(weights, weights) / weights.sum() ** 2
    np.testing.assert_allclose(found[0, 5:16, 7:18, 0], expected, rtol=1e-5)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(blurred(np.ones_like(image)), 1, rtol=1e-5)


def test_what_replaces_patches(make_model, make_images):
    images = make_images(make_model())
    assert (deletion(images)[1] == 0).all()
    mean = deletion(images, "mean")[1]
    np.testing.assert_allclose(mean[1, 3, 2], images[1].mean(axis=(0, 1)), rtol=1e-5)
    first, last = insertion(images)
    np.testing.assert_array_equal(last, images)
    np.testing.assert_array_equal(first, blurred(images))


@pytest.mark.parametrize(
    "fields",
    [{}, {"registers": 2}, {"pooling": "gap"}, {"pooling": "map"}, {"mixer": True}],
)
def test_a_batch_equals_single_images(make_model, make_images, fields):
    model = make_model(**fields)
    images = make_images(model, 3)
    order = ranks(np.random.default_rng(0).normal(size=(3, *model.architecture.grid)))
    ends = deletion(images)
    found = curves(score_of(model, images), ends, order, batch_size=4)
    for i in range(3):
        one = slice(i, i + 1)
        alone = curves(
            score_of(model, images[one]), (ends[0][one], ends[1][one]), order[one]
        )
        np.testing.assert_allclose(found[one], alone, atol=1e-5)


def test_classes_are_scored_by_their_probabilities(make_model, make_images):
    for outputs, show in (
        ("exclusive", jax.nn.softmax),
        ("independent", jax.nn.sigmoid),
    ):
        model = make_model(outputs=outputs)
        images = make_images(model)
        logits = np.asarray(model(images))
        found = score_of(model, images, [3, 1])(images, [0, 1])
        expected = np.asarray(show(logits))[[0, 1], [3, 1]]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        # The class is that of the unmasked image, whatever the masked one's is.
        found = score_of(model, images)(images[::-1], [0, 1])
        expected = np.asarray(show(logits[::-1]))[[0, 1], logits.argmax(-1)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_classes_the_score_is_the_cosine_to_the_unmasked(
    make_model, make_images
):
    model = make_model(num_classes=0)
    images = make_images(model)
    score = score_of(model, images)
    np.testing.assert_allclose(score(images, [0, 1]), 1, atol=1e-6)
    a, b = np.asarray(model(images))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(score(images[::-1], [0, 1]), cosine, atol=1e-6)
    given = score_of(model, images, cosine_to(a))
    np.testing.assert_allclose(given(images, [0, 1]), [1, cosine], atol=1e-6)


def test_mistakes_have_messages(make_model, make_images):
    images = make_images(make_model())
    with pytest.raises(UserError, match="choose zero or mean"):
        deletion(images, "gray")
    with pytest.raises(UserError, match="expected 1 to 12"):
        curves(share_visible, DELETED, ranks(REGION), steps=13)
    with pytest.raises(UserError, match="1 values not finite"):
        ranks(np.array([[[1, np.nan]]]))
    with pytest.raises(UserError, match="2 maps for 1 images"):
        curves(share_visible, DELETED, ranks(np.zeros((2, *GRID))))
    with pytest.raises(UserError, match="odd"):
        blurred(images, 10)
