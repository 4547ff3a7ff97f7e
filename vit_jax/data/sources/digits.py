"""The handwritten digits that scikit-learn ships: 1,797 real images without a download.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

import functools
import importlib.util
import pathlib

import numpy as np

from vit_jax.data.hashing import digest, stable_hash
from vit_jax.data.sources import splits
from vit_jax.data.sources.protocol import DatasetInfo, Example, Source, counted

CLASS_NAMES = tuple("0123456789")
NUM_EXAMPLES = {"train": 1437, "test": 360}


class DigitsContents:
    """Both splits of the digits; the first one opened reads the images."""

    info = DatasetInfo(
        "digits", len(CLASS_NAMES), NUM_EXAMPLES, CLASS_NAMES, "train", "test"
    )

    def split(self, expression: str) -> Source:
        return Digits(expression)


class Digits:
    """One split of the digits; images are uint8 [8, 8, 1]."""

    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)
    multi_label = False

    def __init__(self, split: str):
        self._parts = splits.Parts(split, NUM_EXAMPLES, "digits")
        self._images, self._labels = _pixels_and_labels()

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Example:
        split, position = self._parts[index]
        row = _members()[split][position]
        return Example(
            self._images[row], int(self._labels[row]), f"digits/{split}[{position}]"
        )

    def labels(self) -> np.ndarray:
        return self._labels[self._parts.gather(_members())].astype(np.int32)

    def class_counts(self) -> np.ndarray:
        return counted(self.labels(), self.num_classes)

    def weights(self) -> np.ndarray:
        return np.ones(len(self))

    def fingerprint(self) -> dict[str, str]:
        return {"labels": digest(self.labels())}


@functools.cache
def _pixels_and_labels() -> tuple[np.ndarray, np.ndarray]:
    # Reads scikit-learn's file, because importing scikit-learn takes two seconds.
    spec = importlib.util.find_spec("sklearn")
    assert spec and spec.origin
    file = pathlib.Path(spec.origin).parent / "datasets/data/digits.csv.gz"
    table = np.loadtxt(file, dtype=np.int64, delimiter=",")
    rows, labels = table[:, :-1], table[:, -1]  # [n, 64] in 0…16
    images = np.round(rows * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8, 1), labels


@functools.cache
def _members() -> dict[str, np.ndarray]:
    # Every fifth example of each class is for testing. The order comes from a hash, not
    # from a random generator, so that no version of a library can move an example.
    labels = _pixels_and_labels()[1]
    mixed = sorted(range(len(labels)), key=lambda row: stable_hash(str(row)))
    by_class = sorted(mixed, key=lambda row: labels[row])
    test = set(by_class[::5])
    return {
        "train": np.array([row for row in mixed if row not in test]),
        "test": np.array([row for row in mixed if row in test]),
    }
