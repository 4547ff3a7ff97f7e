"""Matching of classes by name, and data whose labels follow another order of names."""

import collections
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.sources.protocol import Example, Source
from vit_jax.errors import UserError
from vit_jax.words import shortened


def match_names(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Finds the position of each name in `known`; −1 for a name that is not there.

    Names are the same if they differ at most in their Unicode normalisation: a file
    system may have decomposed an "é" into two characters.

    Raises:
      UserError: a name occurs more than once in `known`.
    """
    if len(names) == len(known) and all(map(_same, names, known)):
        return list(range(len(known)))
    exact, normal = collections.defaultdict(list), collections.defaultdict(list)
    for index, name in enumerate(known):
        exact[name].append(index)
        normal[normalised(name)].append(index)
    found = [exact.get(name) or normal.get(normalised(name)) or [-1] for name in names]
    doubtful = {name for name, where in zip(names, found, strict=True) if where[1:]}
    if doubtful:
        raise UserError(
            "classes cannot be matched by name, because several have the same name: "
            f"{shortened(sorted(doubtful))}. Leave these classes out of the data, or "
            "give each one a name of its own"
        )
    return [where[0] for where in found]


def normalised(name: str) -> str:
    """Returns the composed form of a name, in which accented letters are single."""
    return unicodedata.normalize("NFC", name)


def _same(one: str, other: str) -> bool:
    return one == other or normalised(one) == normalised(other)


class Relabelled:
    """A source whose labels are the outputs of a model instead of its own classes.

    A class without an output is removed from an example's labels. If an example may
    have only one label, it is left out instead.
    """

    def __init__(
        self,
        source: Source,
        outputs: Sequence[int],
        class_names: Sequence[str],
        num_classes: int,
        *,
        multi_label: bool = False,
    ):
        """Relabels a source.

        Args:
          source: the examples.
          outputs: for each class of the source its output; −1 = none.
          class_names: names of the outputs; () = unknown.
          num_classes: number of outputs.
          multi_label: give an example any number of labels, even if the source does not
            allow that.
        """
        self._source, self._outputs = source, np.asarray(outputs, np.int32)
        self.class_names = tuple(class_names)
        self.num_classes = num_classes
        self.multi_label = multi_label or source.multi_label
        self._kept: np.ndarray | None = None
        if not self.multi_label and (self._outputs < 0).any():
            self._kept = np.flatnonzero(self._outputs[source.labels()] >= 0)

    @property
    def known(self) -> list[int]:
        """The outputs that are classes of the source."""
        return sorted(set(self._outputs.tolist()) - {-1})

    @property
    def left_out(self) -> int:
        """Number of examples without an output for their class."""
        return len(self._source) - len(self)

    def __len__(self) -> int:
        return len(self._source) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> Example:
        if self._kept is not None:
            index = int(self._kept[index])
        example = self._source[index]
        label: Any = example.label
        if self.multi_label:
            classes = label if isinstance(label, tuple) else (label,)
            found = {int(self._outputs[k]) for k in classes}
            return example._replace(label=tuple(sorted(found - {-1})))
        return example._replace(label=int(self._outputs[label]))

    def labels(self) -> np.ndarray:
        return self._outputs[self._selected(self._source.labels())]

    def class_counts(self) -> np.ndarray:
        counts = np.zeros(self.num_classes)
        known = self._outputs >= 0
        np.add.at(counts, self._outputs[known], self._source.class_counts()[known])
        return counts

    def weights(self) -> np.ndarray:
        return self._selected(self._source.weights())

    def fingerprint(self) -> dict[str, str]:
        outputs = ",".join(map(str, self._outputs.tolist()))
        return {**self._source.fingerprint(), "outputs": outputs}

    def _selected(self, column: np.ndarray) -> np.ndarray:
        return column if self._kept is None else column[self._kept]
