"""Tests of the order of examples: once per epoch, by class, by weight, repeated."""

import collections
import pickle

import numpy as np
import pytest

from vit_jax.data.loading.order import Shuffled, ShuffledByIndex, make_order
from vit_jax.errors import UserError


class Labelled:
    """A source with only the methods that an order uses."""

    def __init__(self, labels=(), weights=()):
        self._labels = np.asarray(labels, np.int32)
        self._weights = np.asarray(weights, np.float64)

    def __len__(self):
        return max(len(self._labels), len(self._weights))

    def labels(self):
        return self._labels

    def weights(self):
        return self._weights


# The orders of version 0.1.
GOLDEN = {
    "uniform": [4, 0, 1, 3, 5, 6, 2, 5, 4, 0, 2, 6, 3, 1],
    "balanced": [1, 6, 4, 0, 5, 2, 3, 0, 2, 3, 6, 1, 2, 4],
    "weighted": [4, 1, 2, 3, 4, 5, 2, 4, 3, 0, 2, 5, 3, 1],
}
LARGE = [14910159, 72173, 338172]


def take(order, start, count):
    return [order[position] for position in range(start, start + count)]


SHUFFLES = [Shuffled, ShuffledByIndex]


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_every_example_comes_once_in_every_epoch(shuffle):
    order = shuffle(10, 1)
    epochs = [take(order, 10 * epoch, 10) for epoch in range(5)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_large_sets_are_shuffled_without_memory():
    assert isinstance(make_order(Labelled([0] * 10), seed=1), Shuffled)
    source = Labelled(range(2**24 + 1))
    assert isinstance(make_order(source, seed=1), ShuffledByIndex)


@pytest.mark.parametrize("count", [10, 2**24 + 1])
def test_adjacent_seeds_share_no_epoch(count):
    """Grain alone shuffles epoch e of seed s like epoch 0 of seed s + e."""
    labels = np.broadcast_to(np.int32(0), count)
    orders = [make_order(Labelled(labels), seed=seed) for seed in range(3)]
    epochs = [take(order, count * e, 10) for order in orders for e in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 9


def test_order_never_changes():
    """Runs must continue in the order that they began with."""
    source = Labelled([0, 1, 1, 2, 2, 2, 0], [1, 2, 3, 4, 3, 2, 1])
    assert {
        sampling: take(make_order(source, seed=7, sampling=sampling), 0, 14)
        for sampling in ("uniform", "balanced", "weighted")
    } == GOLDEN
    assert take(make_order(Labelled(np.arange(2**24 + 1)), seed=7), 2**24, 3) == LARGE


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_shuffle_is_uniform(shuffle):
    """Each tenth of 20,000 examples spreads evenly over the tenths of an epoch (χ²)."""
    for seed in range(3):
        order = np.array(take(shuffle(20_000, seed), 0, 20_000))
        counts, _, _ = np.histogram2d(np.arange(20_000), order, bins=10)
        statistic = ((counts - 200) ** 2 / 200).sum()
        # With 81 degrees of freedom, less than one in ten thousand is outside.
        assert 40 < statistic < 135


def test_balanced_draws_classes_and_their_examples_equally():
    # 1, 4 and 15 examples; class 2 has none.
    labels = [0] + [1] * 4 + [3] * 15
    order = make_order(Labelled(labels), seed=5, sampling="balanced")
    stream = take(order, 0, 180)
    for block in np.reshape([labels[index] for index in stream], (60, 3)):
        assert sorted(block) == [0, 1, 3]
    times = collections.Counter(stream)
    assert [times[index] for index in range(20)] == [60] + [15] * 4 + [4] * 15
    # The first class varies, and no order within a class is repeated.
    assert len({labels[index] for index in stream[::3]}) == 3
    large = [index for index in stream if labels[index] == 3]
    assert len({tuple(large[i : i + 15]) for i in range(0, 60, 15)}) == 4


def test_weighted_draws_examples_by_their_share():
    weights = np.array([0.0, 1.0, 2.5, 4.0, 0.5, 2.0])
    order = make_order(Labelled(weights=weights), seed=5, sampling="weighted")
    expected = weights * 6 / weights.sum()
    total = np.zeros(6)
    for epoch in range(120):
        times = np.bincount(take(order, 6 * epoch, 6), minlength=6)
        assert (np.floor(expected) <= times).all()
        assert (times <= np.ceil(expected)).all()
        total += times
    np.testing.assert_allclose(total / 120, expected, atol=0.15)
    with pytest.raises(UserError, match="needs weights above 0"):
        make_order(Labelled(weights=[0.0, 0.0]), seed=5, sampling="weighted")


@pytest.mark.parametrize("sampling", ["uniform", "balanced", "weighted"])
def test_positions_are_random_access(sampling):
    source = Labelled([0, 1, 1, 2, 2, 2, 0], [1, 2, 3, 4, 3, 2, 1])
    forwards = take(make_order(source, 3, sampling), 0, 50)
    order = make_order(source, 3, sampling)
    backwards = [order[position] for position in reversed(range(50))]
    assert backwards[::-1] == forwards
    assert take(make_order(source, 4, sampling), 0, 50) != forwards


def test_repeated_examples_are_not_adjacent():
    order = make_order(Labelled([0] * 12), seed=0, repeats=3, batch=12)
    plain = make_order(Labelled([0] * 12), seed=0)
    for batch in range(6):
        rows = take(order, 12 * batch, 12)
        assert rows == 3 * take(plain, 4 * batch, 4)


@pytest.mark.parametrize("sampling", ["uniform", "balanced", "weighted"])
def test_other_processes_get_the_same_order(sampling):
    source = Labelled([0, 1, 1, 2, 0], [1.0, 2.0, 0.5, 3.0, 1.0])
    order = make_order(source, seed=3, sampling=sampling)
    first = take(order, 0, 20)
    assert take(pickle.loads(pickle.dumps(order)), 0, 20) == first
