"""Average precision: how well scores rank the positive examples of each class."""

import numpy as np

# More scores than this are not kept: 2²⁸ of them take 1.25 GiB with their labels.
MOST_SCORES = 2**28


def fits(examples: int, num_classes: int) -> bool:
    """Returns whether the scores of so many examples may be kept in memory."""
    return examples * num_classes <= MOST_SCORES


class Scores:
    """The scores of all examples and classes, with which of them are positive."""

    def __init__(self, examples: int, num_classes: int):
        """Makes room for at most `examples`."""
        self._scores = np.zeros((num_classes, examples), np.float32)
        self._positive = np.zeros((num_classes, examples), bool)
        self._count = 0

    def add(self, scores: np.ndarray, positive: np.ndarray) -> None:
        """Adds examples: float32 and bool [b, classes]."""
        new = slice(self._count, self._count + len(scores))
        self._scores[:, new], self._positive[:, new] = scores.T, positive.T
        self._count = new.stop

    def average_precisions(self) -> np.ndarray:
        """Computes the average precision of each class, float64 [classes].

        It is NaN for a class without positive examples.
        """
        return np.array(
            [
                average_precision(positive[: self._count], scores[: self._count])
                for positive, scores in zip(self._positive, self._scores, strict=True)
            ]
        )


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Computes Σ (R_n − R_{n−1}) P_n over the distinct thresholds of the scores.

    Precision is not interpolated, and examples of equal score are accepted together.

    Args:
      positive: bool [n].
      scores: float [n].

    Returns:
      A number in [0, 1]; NaN if no example is positive.
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.cumsum(positive[order]), scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
