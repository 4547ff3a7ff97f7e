"""What every kind of data set looks like to the pipeline: a sequence of examples."""

from typing import NamedTuple, Protocol

import numpy as np


class Example(NamedTuple):
    """One image and what it shows.

    Attributes:
      image: an encoded file, or pixels as uint8 [h, w, c].
      label: index of the class, or the indices of all classes of a multi-label set.
      name: what to call it in a message: a path, or "digits/test[12]".
    """

    image: bytes | np.ndarray
    label: int | tuple[int, ...]
    name: str


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
