"""The order of examples in the endless training stream.

Every order is a function of (seed, position) alone, so any process can ask for any
position, in any order and after any interruption.

Grain's shuffle has that property too, and is used above 2²⁴ (16.8 million) examples: it
takes no memory, but 12 µs per index. Smaller sets get a permutation per epoch of at
most 64 MB, made in half a second, after which an index is one array access. For
photographs the difference is about 1 % of the time, since one core reads, decodes and
augments 806 a second (docs/data.md); for small arrays such as digits it would be more.
Balanced sampling shuffles each round and each class, of many sizes, with the same
permutations. A run that was begun with an order continues in it, so neither may change.
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
    """A mapping from a position in the stream to the example's index in its source."""

    def __getitem__(self, position: int) -> int: ...


def make_order(
    source: Source,
    seed: int,
    sampling: str = "uniform",
    repeats: int = 1,
    batch: int = 1,
) -> Order:
    """Makes the order of the training examples.

    Args:
      source: the examples.
      seed: different seeds give unrelated orders.
      sampling: "uniform": every example once per epoch. "balanced": every class equally
        often, and every example of a class equally often. "weighted": in proportion to
        the examples' weights.
      repeats: how often an example occurs in a batch, augmented anew each time
        (repeated augmentation, arXiv:1901.09335). Its rows are not adjacent, so that
        mixing neighbours does not mix it with itself. Divides `batch`.
      batch: rows of a global batch.

    Raises:
      UserError: the source has no single label per example, or all weights are zero.
    """
    order = SAMPLING[sampling](source, _spread(seed))
    return order if repeats == 1 else _Repeated(order, batch, repeats)


class _Permutations:
    """A function from (count, …) to a permutation of count seeded by (seed, …).

    It caches the last `kept` permutations.
    """

    def __init__(self, seed: int, kept: int):
        self._seed, self._kept = seed, kept
        self._cached = functools.lru_cache(kept)(self._permutation)

    def __call__(self, count: int, *which: int) -> np.ndarray:
        return self._cached(count, *which)

    def _permutation(self, count: int, *which: int) -> np.ndarray:
        order = np.arange(count, dtype=np.int32)
        np.random.default_rng((self._seed, *which)).shuffle(order)
        return order

    def __reduce__(self):  # for the loading processes; the cache is not sent
        return _Permutations, (self._seed, self._kept)


class Shuffled:
    """The indices 0 … count − 1, each once per epoch, by a permutation per epoch."""

    def __init__(self, count: int, seed: int):
        # At the border of two epochs both are in use.
        self._count, self._shuffled = count, _Permutations(seed, kept=2)

    def __getitem__(self, position: int) -> int:
        epoch, rank = divmod(position, self._count)
        return int(self._shuffled(self._count, epoch)[rank])


class ShuffledByIndex:
    """The indices 0 … count − 1, each once per epoch, computed by Grain in 12 µs each.

    It holds no permutation in memory.
    """

    def __init__(self, count: int, seed: int):
        import grain  # not at import time: it takes a second

        self._order = grain.MapDataset.range(count).shuffle(seed).repeat()
        self._order[0]  # Grain's initialisation on first use is not thread-safe

    def __getitem__(self, position: int) -> int:
        index: Any = self._order[position]
        return int(index)


def _shuffled(count: int, seed: int) -> Order:
    # 2²⁴ indices take 64 MB and half a second per epoch.
    return (Shuffled if count <= 2**24 else ShuffledByIndex)(count, seed)


class _Balanced:
    """One example per class and round, the classes shuffled; each class has epochs."""

    def __init__(self, source: Source, seed: int):
        labels = source.labels()
        by_label = np.argsort(labels, kind="stable")
        _, starts = np.unique(labels[by_label], return_index=True)
        self._members = np.split(by_label, starts[1:])  # without empty classes

        # Room for the rounds and epochs in use, and for as many earlier ones.
        self._shuffled = _Permutations(seed, kept=2 * len(self._members) + 64)

    def __getitem__(self, position: int) -> int:
        draw, turn = divmod(position, len(self._members))
        group = int(self._shuffled(len(self._members), draw)[turn])
        members = self._members[group]
        epoch, rank = divmod(draw, len(members))
        return int(members[self._shuffled(len(members), epoch, group)[rank]])


class _Weighted:
    """Systematic sampling: an example of share s comes ⌊ns⌋ or ⌈ns⌉ times per epoch."""

    def __init__(self, source: Source, seed: int):
        weights = np.asarray(source.weights(), np.float64)
        if not weights.sum() > 0:
            raise UserError(
                "all examples have weight 0; sampling by weight needs weights above 0: "
                "give some examples a weight, or use uniform sampling"
            )
        self._ends = np.cumsum(weights) / weights.sum()
        self._seed = seed
        self._ranks = _shuffled(len(weights), seed)

    def __getitem__(self, position: int) -> int:
        count = len(self._ends)
        # Multiples of the golden ratio are spread evenly over [0, 1), so over many
        # epochs every example gets its share.
        start = (self._seed / 2**32 + position // count * _GOLDEN) % 1
        share = (self._ranks[position] + start) / count
        # Rounding may leave the last end just below one.
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
    # Grain shuffles epoch e with seed + e. Unless seeds are spread out, the second
    # epoch of seed 0 would be the first of seed 1. Grain takes 32 bits.
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
