"""Which example stands at which position of the endless training stream.

Every order is a function of (seed, position) alone, so that any process can ask for any
position, in any order and after any interruption.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vit_jax.data.sources.protocol import Source
from vit_jax.errors import UserError

_GOLDEN = (5**0.5 - 1) / 2


class Order(Protocol):
    """Position in the stream → index of the example in its source."""

    def __getitem__(self, position: int) -> int: ...


def make_order(
    source: Source,
    seed: int,
    sampling: str = "uniform",
    repeats: int = 1,
    batch: int = 1,
) -> Order:
    """The order of training examples.

    Args:
      source: the examples.
      seed: another one gives an unrelated order.
      sampling: "uniform": every example once an epoch. "balanced": every class equally
        often, and within a class every example. "weighted": as often as the examples'
        weights say.
      repeats: how often an example stands in a batch, each time to be augmented anew
        (repeated augmentation, arXiv:1901.09335). Its rows lie apart, so that mixing
        neighbours does not mix it with itself. Divides `batch`.
      batch: rows of a global batch.

    Raises:
      UserError: the source cannot say its labels, or all its weights are zero.
    """
    order = SAMPLING[sampling](source, _spread(seed))
    return order if repeats == 1 else _Repeated(order, batch, repeats)


class _Permutations:
    """(count, …) → a permutation of count that (seed, …) decides; the last are kept."""

    def __init__(self, seed: int, kept: int):
        self._seed, self._kept = seed, kept
        self._cached = functools.lru_cache(kept)(self._permutation)

    def __call__(self, count: int, *which: int) -> np.ndarray:
        return self._cached(count, *which)

    def _permutation(self, count: int, *which: int) -> np.ndarray:
        order = np.arange(count, dtype=np.int32)
        np.random.default_rng((self._seed, *which)).shuffle(order)
        return order

    def __reduce__(self):  # for the processes that load; a cache stays where it is
        return _Permutations, (self._seed, self._kept)


class Shuffled:
    """0 … count − 1 in a new order every epoch, each once."""

    def __init__(self, count: int, seed: int):
        # Two epochs are in use at their border.
        self._count, self._shuffled = count, _Permutations(seed, kept=2)

    def __getitem__(self, position: int) -> int:
        epoch, rank = divmod(position, self._count)
        return int(self._shuffled(self._count, epoch)[rank])


class ShuffledByIndex:
    """The same without memory of its own: Grain computes every index, in 12 µs."""

    def __init__(self, count: int, seed: int):
        import grain  # not at import time: it takes a second

        self._order = grain.MapDataset.range(count).shuffle(seed).repeat()
        self._order[0]  # what Grain creates at the first use is not safe from threads

    def __getitem__(self, position: int) -> int:
        index: Any = self._order[position]
        return int(index)


def _shuffled(count: int, seed: int) -> Order:
    # Up to 64 MB an epoch, half a second to make, are kept.
    return (Shuffled if count <= 2**24 else ShuffledByIndex)(count, seed)


class _Balanced:
    """The classes in turn, shuffled in each round; within a class its own epochs."""

    def __init__(self, source: Source, seed: int):
        labels = source.labels()
        by_label = np.argsort(labels, kind="stable")
        _, starts = np.unique(labels[by_label], return_index=True)
        self._members = np.split(by_label, starts[1:])  # classes without examples: none

        # The rounds and epochs that are in use, and as many of those before.
        self._shuffled = _Permutations(seed, kept=2 * len(self._members) + 64)

    def __getitem__(self, position: int) -> int:
        draw, turn = divmod(position, len(self._members))
        group = int(self._shuffled(len(self._members), draw)[turn])
        members = self._members[group]
        epoch, rank = divmod(draw, len(members))
        return int(members[self._shuffled(len(members), epoch, group)[rank]])


class _Weighted:
    """Systematic sampling: an epoch has ⌊ns⌋ or ⌈ns⌉ times an example of share s."""

    def __init__(self, source: Source, seed: int):
        weights = np.asarray(source.weights(), np.float64)
        if not weights.sum() > 0:
            raise UserError(
                "sampling by weight needs weights above 0: all of the examples' are 0"
            )
        self._ends = np.cumsum(weights) / weights.sum()
        self._seed = seed
        self._ranks = _shuffled(len(weights), seed)

    def __getitem__(self, position: int) -> int:
        count = len(self._ends)
        # Multiples of the golden ratio lie evenly in [0, 1): over the epochs every
        # share comes out.
        start = (self._seed / 2**32 + position // count * _GOLDEN) % 1
        share = (self._ranks[position] + start) / count
        # The last end may be rounded to just below one.
        return min(int(np.searchsorted(self._ends, share, side="right")), count - 1)


@dataclasses.dataclass(frozen=True)
class _Repeated:
    order: Order
    batch: int
    repeats: int

    def __getitem__(self, position: int) -> int:
        distinct = self.batch // self.repeats
        batch, row = divmod(position, self.batch)
        return self.order[batch * distinct + row % distinct]


SAMPLING: dict[str, Callable[[Source, int], Order]] = {
    "uniform": lambda source, seed: _shuffled(len(source), seed),
    "balanced": _Balanced,
    "weighted": _Weighted,
}


def _spread(seed: int) -> int:
    # Grain shuffles epoch e with seed + e: spread the seeds out, or the second epoch of
    # seed 0 would be the first of seed 1. It takes 32 bits.
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
