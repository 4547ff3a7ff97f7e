"""What every kind of data set looks like: facts to plan with, and then examples."""

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from vit_jax.errors import UserError


class Example(NamedTuple):
    """One image and what it shows.

    Attributes:
      image: an encoded file, or pixels as uint8 [h, w, c].
      label: index of the class, or the indices of all classes of a multi-label set.
      name: what to call it in a message: a path, or "digits/test[12]".
      weight: how much it counts; 1 where the data set does not say.
    """

    image: bytes | np.ndarray
    label: int | tuple[int, ...]
    name: str
    weight: float = 1.0


class Source(Protocol):
    """Random access to the examples of one split; reading is safe from any thread."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def multi_label(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def labels(self) -> np.ndarray:
        """int32 [n], without decoding an image; UserError of a multi-label set."""
        ...

    def weights(self) -> np.ndarray:
        """float64 [n]: every example's weight."""
        ...


def check_single_label(source: Source, name: str) -> None:
    """Raises UserError unless every example of the source has one label."""
    if source.multi_label:
        raise UserError(
            f"an example of {name} may have several labels, so there is no one class "
            "to sample by. Sample by weight or uniformly, or name one label an example."
        )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: as numbers where all are whole ones."""
    names = set(names)
    numbers = all(re.fullmatch("[+-]?[0-9]+", name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What planning a run needs to know of its data.

    Attributes:
      name: as given.
      num_classes: width of the model's head.
      num_examples: split → number of examples.
      class_names: None where only the data itself would tell.
      train_split, eval_split: the defaults, or what `describe` was asked for; no
        train_split where there is nothing to train on.
      multi_label: an example may have any number of labels.
      held_out: eval_split is a part of what there is to train on, and left out there.
    """

    name: str
    num_classes: int
    num_examples: dict[str, int]
    class_names: tuple[str, ...] | None
    train_split: str
    eval_split: str
    multi_label: bool = False
    held_out: bool = False


class Kind(Protocol):
    """The two functions of a module that reads one kind of data set.

    `place` is the absolute path of the data, or the name of what has none; `data_dir`
    is where tensorflow-datasets keeps its sets.
    """

    def describe(self, place: str, data_dir: str, /) -> DatasetInfo: ...

    def open_split(self, place: str, split: str, data_dir: str, /) -> Source: ...
