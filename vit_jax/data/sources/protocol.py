"""The interface of every kind of data set: facts for planning, and examples."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from vit_jax.data.sources import splits
from vit_jax.data.sources.options import DataOptions
from vit_jax.errors import UserError


class Example(NamedTuple):
    """One image with its label.

    Attributes:
      image: an encoded file, or pixels as uint8 [h, w, c].
      label: index of the class; in a multi-label set, the indices of all its classes.
      name: the name in messages: a path, or "digits/test[12]".
      weight: its weight in losses or sampling; 1 if the data set has no weights.
    """

    image: bytes | np.ndarray
    label: int | tuple[int, ...]
    name: str
    weight: float = 1.0


class Source(Protocol):
    """Random access to the examples of one split; reading is thread-safe."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def multi_label(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def labels(self) -> np.ndarray:
        """Returns int32 [n], decoding no image; UserError for a multi-label set."""
        ...

    def class_counts(self) -> np.ndarray:
        """Counts the examples that have each class, float64 [k], decoding no image."""
        ...

    def weights(self) -> np.ndarray:
        """Returns every example's weight, float64 [n]."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Identifies the examples in their order, decoding none, wherever they are.

        Returns:
          What is compared, such as "paths" or "labels" → a digest.
        """
        ...


def check_single_label(source: Source, name: str) -> None:
    """Raises UserError unless every example of the source has one label."""
    if source.multi_label:
        raise UserError(
            f"an example of {name} may have several labels, so it has no single class "
            "to sample by. Sample by weight or uniformly, or give each example one "
            "label."
        )


def counted(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts how often each class occurs, float64 [k]."""
    return np.bincount(labels, minlength=num_classes).astype(np.float64)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts class names into the order of labels: numerically if all are integers."""
    names = set(names)
    numbers = all(re.fullmatch("[+-]?[0-9]+", name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The facts of a data set that planning a run needs.

    Attributes:
      name: as given.
      num_classes: width of the model's head.
      num_examples: split → number of examples.
      class_names: None if only the data would tell.
      train_split, eval_split: the defaults, or the arguments of `with_splits`; an empty
        train_split if there is nothing to train on.
      multi_label: whether an example may have any number of labels.
      held_out: whether eval_split was split off the training data.
      problems: split → why it cannot be used; raised only if it is asked for.
    """

    name: str
    num_classes: int
    num_examples: dict[str, int]
    class_names: tuple[str, ...] | None
    train_split: str
    eval_split: str
    multi_label: bool = False
    held_out: bool = False
    problems: Mapping[str, UserError] = dataclasses.field(default_factory=dict)

    def with_splits(self, train_split: str = "", eval_split: str = "") -> "DatasetInfo":
        """Chooses the two splits of a run and counts their examples.

        Args:
          train_split: "" = the dataset's default.
          eval_split: "" = the dataset's default.

        Returns:
          `num_examples` holds the counts of exactly `train_split` and `eval_split`.

        Raises:
          UserError: there is no such split, it cannot be used, or there is nothing to
            train on.
        """
        train_split = train_split or self.train_split
        eval_split = eval_split or self.eval_split
        if not train_split:
            raise UserError(
                f"{self.name} has nothing to train on, only "
                f"{', '.join(self.num_examples)}: put training images into "
                "FOLDER/train, or name a split with --config.train_split"
            )
        for split in (train_split, eval_split):
            splits.check(split, self.problems)
        counts = {
            split: splits.count(split, self.num_examples, self.name)
            for split in (train_split, eval_split)
        }
        return dataclasses.replace(
            self,
            num_examples=counts,
            train_split=train_split,
            eval_split=eval_split,
            held_out=self.held_out and eval_split == self.eval_split,
        )


class Contents(Protocol):
    """An opened data set, whose description is read once."""

    @property
    def info(self) -> DatasetInfo:
        """Facts of all splits, under the name that the data have themselves."""
        ...

    def split(self, expression: str, /) -> Source:
        """Opens the examples of a split such as "train[:98%]" or "train+test"."""
        ...


class Kind(Protocol):
    """A function that opens data sets of one kind.

    `location` is the absolute path of the data, or the name of a set that has none;
    `data_dir` is where tensorflow-datasets stores data sets; `options` say how the
    files are read. Raises UserError if the data cannot be used.
    """

    def __call__(
        self, location: str, data_dir: str, options: DataOptions, /
    ) -> Contents: ...
