"""Counts of labels and predictions, for data with one label per image."""

from typing import NamedTuple

import numpy as np

# Number of pairs that wait to be counted; bounds the memory.
_WAITING = 1 << 20


class Cell(NamedTuple):
    """One cell of a confusion matrix that is not zero."""

    label: int
    predicted: int
    count: int


class Confusion:
    """A confusion matrix, of which only the cells that occur take memory."""

    def __init__(self, num_classes: int):
        """Makes a matrix of zeros."""
        self.num_classes = num_classes
        self._codes = np.zeros(0, np.int64)  # label · num_classes + prediction
        self._counts = np.zeros(0, np.int64)
        self._waiting: list[np.ndarray] = []

    def add(self, labels: np.ndarray, predicted: np.ndarray) -> None:
        """Counts examples.

        Args:
          labels: integers [b].
          predicted: integers [b]; −1 = the example does not count.
        """
        counts = predicted >= 0
        codes = labels[counts].astype(np.int64) * self.num_classes + predicted[counts]
        self._waiting.append(codes)
        if sum(map(len, self._waiting)) >= _WAITING:
            self._count()

    def cells(self) -> list[Cell]:
        """Lists the cells that are not zero, by label and then by prediction."""
        labels, predicted, counts = self._columns()
        return [
            Cell(*cell)
            for cell in zip(
                labels.tolist(), predicted.tolist(), counts.tolist(), strict=True
            )
        ]

    def largest(self, most: int) -> list[Cell]:
        """Lists the most frequent confusions of two classes, the largest first."""
        wrong = [cell for cell in self.cells() if cell.label != cell.predicted]
        return sorted(wrong, key=lambda cell: -cell.count)[:most]

    def by_class(self) -> "ByClass":
        """Counts by class."""
        labels, predicted, counts = self._columns()
        hits = labels == predicted

        def sums(classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
            found = np.bincount(classes, counts, minlength=self.num_classes)
            return found.astype(np.int64)

        return ByClass(
            sums(labels, counts),
            sums(predicted, counts),
            sums(labels[hits], counts[hits]),
        )

    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._count()
        return *np.divmod(self._codes, self.num_classes), self._counts

    def _count(self) -> None:
        codes = np.concatenate([self._codes, *self._waiting])
        ones = np.ones(len(codes) - len(self._codes), np.int64)
        before = np.concatenate([self._counts, ones])
        self._codes, which = np.unique(codes, return_inverse=True)
        self._counts = np.zeros(len(self._codes), np.int64)
        np.add.at(self._counts, which, before)
        self._waiting = []


class ByClass(NamedTuple):
    """Counts of each class, int64 [classes]."""

    examples: np.ndarray  # with this label
    predicted: np.ndarray  # with this prediction
    right: np.ndarray  # with both

    @property
    def recall(self) -> np.ndarray:
        """Share of a class's examples that are predicted; NaN without examples."""
        return share(self.right, self.examples)

    @property
    def precision(self) -> np.ndarray:
        """Share of a class's predictions that are right; NaN without predictions."""
        return share(self.right, self.predicted)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall; NaN if a class never occurs."""
        return share(2 * self.right, self.examples + self.predicted)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes with examples; NaN if there are none."""
        return _mean(self.recall)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes among labels or predictions; NaN if there are none."""
        return _mean(self.f1)

    @property
    def micro_f1(self) -> float:
        """F1 of all classes' counts together; NaN if there are none."""
        every = ByClass(*(counts.sum(keepdims=True) for counts in self))
        return float(every.f1[0])


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divides counts; NaN where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
