"""Mixing and erasing: timm's results, weights, distributions, and a whole run."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vit_jax import config as config_lib
from vit_jax.objectives import mixing
from vit_jax.objectives.losses import (
    sigmoid_xent,
    smooth_labels,
    softmax_xent,
    to_targets,
)
from vit_jax.objectives.mixing import Examples, Kept
from vit_jax.train.loop import train_and_evaluate

REFERENCES = np.load(pathlib.Path(__file__).parents[1] / "golden/mixing_references.npz")
NUM_CLASSES = 5
DRAWS = 2000


def reference(name):
    """Loads the arrays of one case, by name."""
    return {
        key.removeprefix(f"{name}/"): REFERENCES[key]
        for key in REFERENCES.files
        if key.startswith(f"{name}/")
    }


def options(**values):
    section = config_lib.default_config().mixing
    section.update(values)
    return section


def examples(rows=6, size=(4, 5), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(rows, *size, 3)).astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES, rows)
    targets = to_targets(jnp.asarray(labels), NUM_CLASSES)
    return Examples(jnp.asarray(images), targets, jnp.ones(rows))


def evenly(lam, size=(4, 5)):
    return Kept(jnp.full(size, lam), jnp.float32(lam))


def draw(function, *arguments, draws=DRAWS):
    """Draws many times from a function of (key, …)."""
    keys = jax.random.split(jax.random.key(5), draws)
    return jax.jit(jax.vmap(lambda key: function(key, *arguments)))(keys)


@pytest.mark.parametrize(
    "name",
    [
        "mixup",
        "mixup_smoothed",
        "cutmix_inside",
        "cutmix_clipped",
        "cutmix_whole",
        "cutmix_nothing",
    ],
)
def test_mixing_equals_timm(name):
    expected = reference(name)
    lam, smoothing = expected["drawn"]
    images = jnp.asarray(REFERENCES["images"])
    size = images.shape[1:3]
    kept = evenly(lam, size)
    if expected["center"].size:
        box = mixing.cutmix_box(jnp.asarray(lam), jnp.asarray(expected["center"]), size)
        kept = mixing.keep_outside(box, size)
    targets = to_targets(jnp.asarray(REFERENCES["labels"]), NUM_CLASSES)
    mixed = mixing.mix(
        Examples(images, targets, jnp.ones(len(images))),
        kept,
        mixing.FORMS["timm"].partner,
    )
    np.testing.assert_allclose(mixed.images, expected["images"], atol=1e-6)
    # The loss smooths mixed targets, timm mixes smoothed ones.
    smoothed = smooth_labels(mixed.targets, float(smoothing))
    np.testing.assert_allclose(smoothed, expected["targets"], atol=1e-6)
    np.testing.assert_array_equal(mixed.weights, 1)


@pytest.mark.parametrize(
    "name", ["first_fits", "third_fits", "low", "none_fits", "empty"]
)
def test_erased_rectangles_equal_timms(name):
    expected = reference(name)
    rows, columns = expected["mask"].shape
    box = mixing.erasing_box(
        *(jnp.asarray(expected[key]) for key in ("areas", "aspects", "corner")),
        (rows, columns),
    )
    mask = np.zeros((rows, columns), bool)
    mask[box.start[0] : box.stop[0], box.start[1] : box.stop[1]] = True
    np.testing.assert_array_equal(mask, expected["mask"])


def test_big_vision_rolls_by_one_and_keeps_the_larger_share():
    batch = examples()
    apply = mixing.make_mixing(options(mixup_alpha=0.5))
    mixed = apply(jax.random.key(0), batch)
    before = [-1, 0, 1, 2, 3, 4]
    own, other = np.asarray(batch.targets), np.asarray(batch.targets)[before]
    row = next(i for i in range(6) if own[i].argmax() != other[i].argmax())
    lam = mixed.targets[row, own[row].argmax()]
    assert 0.5 <= lam < 0.999
    np.testing.assert_allclose(mixed.targets, lam * own + (1 - lam) * other, atol=1e-6)
    images = np.asarray(batch.images)
    np.testing.assert_allclose(
        mixed.images, lam * images + (1 - lam) * images[before], atol=1e-6
    )


@pytest.mark.parametrize("form", mixing.FORMS)
def test_a_share_of_one_keeps_the_batch(form):
    batch = examples()
    mixed = mixing.mix(batch, evenly(1.0), mixing.FORMS[form].partner)
    for array, same in zip(mixed, batch, strict=True):
        np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize(
    "values",
    [
        {"mixup_alpha": 0.2},
        {"form": "timm", "mixup_alpha": 0.8, "cutmix_alpha": 1.0},
        {"form": "timm", "cutmix_alpha": 1.0, "erasing_prob": 0.5, "erasing_count": 3},
    ],
)
def test_targets_sum_to_one_and_only_the_key_decides(values):
    apply = jax.jit(mixing.make_mixing(options(**values)))
    results = [apply(jax.random.key(seed), examples()) for seed in (0, 0, 1)]
    for mixed in results:
        np.testing.assert_allclose(mixed.targets.sum(axis=1), 1, atol=1e-6)
        assert mixed.images.dtype == mixed.targets.dtype == jnp.float32
    first, again, other = results
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    assert not np.array_equal(first.images, other.images)


def test_without_mixing_there_is_no_function():
    assert mixing.make_mixing(options()) is None
    assert mixing.make_mixing(options(form="timm", mixup_alpha=1.0, prob=0.0)) is None


@pytest.mark.parametrize("form", mixing.FORMS)
@pytest.mark.parametrize("kept", [evenly(0.3), evenly(0.0)], ids=["some", "none"])
def test_examples_without_weight_reach_no_other(form, kept):
    batch = examples()._replace(weights=jnp.array([1, 1, 0, 1, 1, 1.0]))
    partner = mixing.FORMS[form].partner
    mixed = mixing.mix(batch, kept, partner)
    np.testing.assert_array_equal(mixed.weights, batch.weights)
    # Rows 2 and 3 are partners in both forms.
    for rows in (2, 3):
        np.testing.assert_array_equal(mixed.images[rows], batch.images[rows])
        np.testing.assert_array_equal(mixed.targets[rows], batch.targets[rows])
    other = batch._replace(
        images=batch.images.at[2].set(1e6), targets=batch.targets.at[2].set(7.0)
    )
    counted = np.array([0, 1, 3, 4, 5])
    for array, same in zip(mixing.mix(other, kept, partner), mixed, strict=True):
        np.testing.assert_array_equal(array[counted], same[counted])


@pytest.mark.parametrize("form", mixing.FORMS)
@pytest.mark.parametrize("loss", [softmax_xent, sigmoid_xent])
def test_both_labels_count_as_much_as_their_examples(form, loss):
    weights = jnp.array([1.0, 0.25, 3.0, 0.5, 1.0, 2.0])
    batch = examples()._replace(weights=weights)
    partner = mixing.FORMS[form].partner
    mixed = mixing.mix(batch, evenly(0.7), partner)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, NUM_CLASSES)))
    np.testing.assert_allclose(
        mixed.weights * loss(logits, mixed.targets),
        0.7 * weights * loss(logits, batch.targets)
        + 0.3 * partner(weights) * loss(logits, partner(batch.targets)),
        rtol=1e-5,
    )
    assert float(mixed.weights.sum()) == pytest.approx(float(weights.sum()))


def assert_like(sample, expected):
    """Asserts that a sample fits another sample or a distribution."""
    assert scipy.stats.kstest(np.asarray(sample), expected).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_mixup_shares_are_beta_distributed(alpha):
    beta = scipy.stats.beta(alpha, alpha)
    values = options(form="timm", mixup_alpha=alpha)
    kept = draw(mixing.draw_timm, (2, 2), values)
    assert_like(kept.label, beta.cdf)
    for pixels in kept.pixels.reshape(DRAWS, 4).T:
        np.testing.assert_array_equal(pixels, kept.label)
    kept = draw(mixing.draw_big_vision, (2, 2), values)
    assert_like(kept.label, lambda x: np.where(x < 0.5, 0, 2 * beta.cdf(x) - 1))


def test_extreme_alphas_are_finite():
    for alpha in (1e-6, 1000.0):
        values = options(form="timm", mixup_alpha=alpha, cutmix_alpha=alpha)
        kept = draw(mixing.draw_timm, (2, 2), values, draws=100)
        assert np.all((kept.label >= 0) & (kept.label <= 1))


def test_cutmix_boxes_are_distributed_like_timms():
    kept = draw(mixing.draw_timm, (64, 64), options(form="timm", cutmix_alpha=1.0))
    cut = np.asarray(kept.pixels) == 0
    np.testing.assert_allclose(kept.label, 1 - cut.mean(axis=(1, 2)), atol=1e-6)
    boxes = boxes_of(cut)
    expected = REFERENCES["cutmix_boxes"].astype(int)
    expected = expected[area(expected) > 0]
    assert len(boxes) == pytest.approx(len(expected), abs=3 * DRAWS**0.5)
    assert_like(area(boxes), area(expected))
    for end in range(4):
        assert_like(boxes[:, end], expected[:, end])
    # Boxes that no border cuts off have a known distribution of places: uniform.
    small = boxes[(boxes[:, 2] - boxes[:, 0] < 9) & (boxes[:, :2] > 0).all(axis=1)]
    small = small[(small[:, 2:] < 64).all(axis=1)]
    for axis in range(2):
        center = (small[:, axis] + small[:, axis + 2]) / 2
        assert_like(center, scipy.stats.uniform(4, 56).cdf)


def test_frequencies_of_mixup_and_cutmix():
    values = {"form": "timm", "mixup_alpha": 1.0, "cutmix_alpha": 1.0}
    kept = draw(
        mixing.draw_timm, (32, 32), options(prob=0.6, switch_prob=0.3, **values)
    )
    cut = (np.asarray(kept.pixels) == 0).any(axis=(1, 2))
    whole = np.asarray(kept.label) == 1
    # A cut so small that it takes no pixel is like no cut: lam > 1 − 1/32², 0.1 %.
    counts = [cut.sum(), whole.sum(), (~cut & ~whole).sum()]
    shares = np.array([0.6 * 0.3, 0.4, 0.6 * 0.7])
    assert scipy.stats.chisquare(counts, shares * DRAWS).pvalue > 0.01


def test_erased_rectangles_match_timm_in_number_and_size():
    images = jnp.ones((3 * DRAWS, 64, 64, 1))
    erase = jax.jit(functools.partial(mixing.random_erasing, prob=0.3, mode="const"))
    erased = np.asarray(erase(jax.random.key(1), images))[..., 0] == 0
    boxes = boxes_of(erased)
    rate = scipy.stats.binomtest(len(boxes), len(images), 0.3)
    assert rate.pvalue > 0.01
    expected = REFERENCES["erased_boxes"].astype(int)
    assert_like(area(boxes), area(expected))
    aspect = lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1])  # noqa: E731
    assert_like(aspect(boxes), aspect(expected))
    for end in range(4):
        assert_like(boxes[:, end], expected[:, end])
    shares = area(boxes) / 64**2
    assert 0.018 < shares.min() < 0.03
    assert 0.31 < shares.max() < 0.345


def test_several_rectangles_share_the_area():
    images = jnp.ones((DRAWS, 32, 32, 1))
    means = []
    for count in (1, 4):
        values = {"prob": 1.0, "mode": "const", "count": count}
        erase = jax.jit(functools.partial(mixing.random_erasing, **values))
        erased = np.asarray(erase(jax.random.key(1), images))[..., 0] == 0
        assert erased.any(axis=(1, 2)).all()
        means.append(erased.mean())
    # Where rectangles overlap the area is smaller, by less than a fifth.
    assert 0.8 * means[0] < means[1] < means[0]


def boxes_of(masks):
    """Returns the boxes [n, 4] of masks [n, h, w]: rectangles, empty ones left out."""
    masks = masks[masks.any(axis=(1, 2))]
    ends = []
    for axis in (2, 1):
        lines = masks.any(axis=axis)
        ends.append((lines.argmax(axis=1), lines.shape[1] - lines[:, ::-1].argmax(1)))
    (top, bottom), (left, right) = ends
    boxes = np.stack([top, left, bottom, right], axis=1)
    np.testing.assert_array_equal(area(boxes), masks.sum(axis=(1, 2)))
    return boxes


def area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@pytest.mark.parametrize("mode", mixing.FILLS)
def test_fills_of_erased_rectangles(mode):
    images = jnp.full((200, 16, 16, 3), 9.0)
    filled = np.asarray(
        mixing.random_erasing(jax.random.key(0), images, prob=1.0, mode=mode)
    )
    erased = (filled != 9).any(axis=-1)
    assert 0.1 < erased.mean() < 0.25
    np.testing.assert_array_equal(filled[~erased], 9)
    colours = [image[mask] for image, mask in zip(filled, erased, strict=True)]
    if mode == "const":
        assert not np.concatenate(colours).any()
        return
    if mode == "rand":
        for pixels in colours:
            assert len(np.unique(pixels, axis=0)) == 1
        colours = [pixels[:1] for pixels in colours]
    numbers = np.concatenate(colours).ravel()
    assert len(np.unique(numbers)) > 0.99 * len(numbers)
    assert_like(numbers[:DRAWS], "norm")


EVERYTHING = {
    "big_vision": {"mixing.mixup_alpha": 0.2},
    "timm": {
        "mixing.form": "timm",
        "mixing.mixup_alpha": 0.8,
        "mixing.cutmix_alpha": 1.0,
        "mixing.prob": 0.9,
        "mixing.binary_targets": True,
        "loss": "sigmoid",
    },
}


@pytest.mark.parametrize("form", EVERYTHING)
def test_a_run_with_every_kind_of_mixing(form, tiny_config, tmp_path):
    config = tiny_config(
        **EVERYTHING[form],
        **{
            "mixing.erasing_prob": 0.5,
            "mixing.erasing_mode": "rand",
            "mixing.erasing_count": 2,
            "label_smoothing": 0.1,
            "total_steps": 2,
            "accum_steps": 2,
            "model.dropout_rate": 0.1,
            "model.depth": 1,
            "mesh.data": 1,
        },
    )
    numbers = train_and_evaluate(config, str(tmp_path))
    assert numbers["examples"] == 360
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if row["split"] == "train"]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def enlarged(images, by=(3, 2)):
    return jnp.repeat(jnp.repeat(images, by[0], axis=1), by[1], axis=2)


@pytest.mark.parametrize(
    "values",
    [
        {"form": "big_vision", "mixup_alpha": 1.0},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.0},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 1.0},
        {"erasing_prob": 1.0, "erasing_mode": "pixel", "erasing_count": 2},
        {"erasing_prob": 1.0, "erasing_mode": "rand"},
        {"erasing_prob": 0.5, "erasing_mode": "const", "mixup_alpha": 0.8},
    ],
)
def test_other_sizes_are_mixed_and_erased_at_the_same_places(values):
    made = mixing.make_mixing(options(**{"form": "timm", **values}))
    batch = examples(size=(8, 10))
    others = enlarged(batch.images), batch.images[:, ::2, ::2]
    changed = 0
    for seed in range(4):
        key = jax.random.key(seed)
        expected = made(key, batch)
        found, (large, small) = made.all_sizes(key, batch, others)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(large, enlarged(expected.images), atol=1e-6)
        assert small.shape == others[1].shape
        changed += not np.array_equal(large, others[0])
    assert changed


def test_nearest_values_are_those_at_the_centres():
    found = mixing.at_size(jnp.arange(6.0).reshape(2, 3), (4, 2))
    assert found.tolist() == [[0, 2], [0, 2], [3, 5], [3, 5]]
