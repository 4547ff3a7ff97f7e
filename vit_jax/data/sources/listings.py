"""Image files with their labels, listed by folders and tables."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vit_jax.data.hashing import digest, stable_hash
from vit_jax.data.preprocessing import read_file
from vit_jax.data.sources import splits
from vit_jax.data.sources.holding_out import Label, held_out, uncovered
from vit_jax.data.sources.options import NEWEST_RULES
from vit_jax.data.sources.protocol import (
    DatasetInfo,
    Example,
    check_single_label,
    counted,
)
from vit_jax.errors import UserError


class Entry(NamedTuple):
    """One image: path relative to the listing's root with "/", label, weight."""

    path: str
    label: Label
    weight: float = 1.0


class Ragged:
    """A sequence of arrays of any lengths, stored in two arrays.

    Attributes:
      flat: the concatenated arrays.
      ends: int64 [n + 1]; the i-th array is flat[ends[i] : ends[i + 1]].
    """

    def __init__(self, flat: np.ndarray, ends: np.ndarray):
        self.flat, self.ends = flat, ends

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.ends[index] : self.ends[index + 1]]

    def part(self, selected: slice) -> tuple[np.ndarray, np.ndarray]:
        """Returns the arrays of a slice, concatenated, and their lengths."""
        first, last, _ = selected.indices(len(self))
        ends = self.ends[first : last + 1]
        return self.flat[ends[0] : ends[-1]], np.diff(ends)

    @classmethod
    def of(cls, parts: Sequence[Sequence[int]], dtype: type) -> "Ragged":
        flat = np.fromiter((x for part in parts for x in part), dtype)
        return cls(flat, _ends(parts))

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> "Ragged":
        """Encodes strings as uint8; file names that are not UTF-8 survive unchanged."""
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), _ends(encoded))

    def text(self, index: int) -> str:
        return self[index].tobytes().decode("utf-8", "surrogateescape")

    def texts(self) -> list[str]:
        return [self.text(index) for index in range(len(self))]


class Files(Sequence[tuple[str, Label]]):
    """Paths with labels and weights, in three arrays.

    A million tuples would take ten times as long to read from a cache or to send to
    another process.

    Attributes:
      paths: relative to the listing's root, with "/".
      labels: int32 [n]; ragged if an example may have any number of labels.
      weights: float64 [n].
    """

    def __init__(self, paths: Ragged, labels: np.ndarray | Ragged, weights: np.ndarray):
        self.paths, self.labels, self.weights = paths, labels, weights

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Files":
        labels: list = [entry.label for entry in entries]
        several = any(isinstance(label, tuple) for label in labels)
        return cls(
            Ragged.of_texts([entry.path for entry in entries]),
            Ragged.of(labels, np.int32) if several else np.array(labels, np.int32),
            np.array([entry.weight for entry in entries], np.float64),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):
        found = self.labels[index]
        label = tuple(found.tolist()) if isinstance(self.labels, Ragged) else int(found)
        return self.paths.text(index), label


class Reader(Protocol):
    """Reads what a listing's paths stand for, if these are not all ordinary files."""

    def __call__(self, path: str, /) -> bytes:
        """Returns the bytes of an image; raises DecodeError if it cannot be read."""
        ...

    def size_and_time(self, path: str, /) -> tuple[int, int] | None:
        """Returns size and modification time (ns); None if it is an ordinary file."""
        ...


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a data set and their labels, by split.

    Attributes:
      path: the folder that the files' paths are relative to.
      name: the name in messages.
      class_names: in the order of the labels.
      files: split → its files, in an order that mixes the classes and depends only on
        the paths, so that a slice of a split is a fair sample.
      train_split, eval_split: the default splits for training and evaluation.
      multi_label: whether a file may have any number of labels.
      held_out: see `DatasetInfo`.
      left_out: reason → number of files that are not in the listing.
      remarks: sentences about what was found and how it was understood.
      problems: see `DatasetInfo`.
      reader: reads a file's bytes, by its path in `files`; None = an ordinary file.
    """

    path: str
    name: str
    class_names: tuple[str, ...]
    files: dict[str, Files]
    train_split: str
    eval_split: str
    multi_label: bool = False
    held_out: bool = False
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    problems: Mapping[str, UserError] = dataclasses.field(default_factory=dict)
    reader: Reader | None = None

    @property
    def num_examples(self) -> dict[str, int]:
        return {name: len(files) for name, files in self.files.items()}

    @property
    def info(self) -> DatasetInfo:
        """Facts for planning a run."""
        return DatasetInfo(
            self.name,
            len(self.class_names),
            self.num_examples,
            self.class_names,
            self.train_split,
            self.eval_split,
            self.multi_label,
            self.held_out,
            self.problems,
        )

    def read(self, path: str) -> bytes:
        """Reads the bytes of one of `files`; raises DecodeError if that fails."""
        if self.reader:
            return self.reader(path)
        return read_file(os.path.join(self.path, path))

    def size_and_time(self, path: str) -> tuple[int, int]:
        """Returns the size and the modification time (ns) of one of `files`.

        Raises:
          OSError: there is no such file.
        """
        if self.reader and (known := self.reader.size_and_time(path)):
            return known
        stat = os.stat(os.path.join(self.path, path))
        return stat.st_size, stat.st_mtime_ns

    def split(self, expression: str) -> "ListedImages":
        """Opens a split such as "train[:98%]" or "train+val".

        Raises:
          UserError: the split cannot be used, or there is none of this name.
        """
        splits.check(expression, self.problems)
        # Errors stay here: not all of them can be sent to another process.
        return ListedImages(dataclasses.replace(self, problems={}), expression)


class NotForTraining(UserError):
    """An error: a run can train on these data or evaluate on this split only in part.

    Attributes:
      listing: all of the data, on which a trained model can be evaluated.
    """

    def __init__(self, message: str, listing: Listing):
        super().__init__(message)
        self.listing = listing


class ListedImages:
    """One split of a listing; a file is read when its example is requested."""

    def __init__(self, listing: Listing, split: str):
        self.class_names = listing.class_names
        self.multi_label = listing.multi_label
        self.listing = listing
        self._parts = splits.Parts(split, listing.num_examples, listing.name)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._parts)

    def path(self, index: int) -> str:
        """Returns the path of an example's file."""
        split, position = self._parts[index]
        relative = self.listing.files[split].paths.text(position)
        return os.path.join(self.listing.path, relative)

    def __getitem__(self, index: int) -> Example:
        split, position = self._parts[index]
        relative, label = self.listing.files[split][position]
        weight = float(self.listing.files[split].weights[position])
        name = os.path.join(self.listing.path, relative)
        return Example(self.listing.read(relative), label, name, weight)

    def file(self, index: int) -> tuple[str, Label]:
        """Returns the path and the label of an example, without reading the file."""
        split, position = self._parts[index]
        relative, label = self.listing.files[split][position]
        return os.path.join(self.listing.path, relative), label

    def paths(self) -> list[str]:
        """Lists the files, relative to the listing's root, without opening any."""
        files, places = (
            self.listing.files,
            map(self._parts.__getitem__, range(len(self))),
        )
        return [files[split].paths.text(place) for split, place in places]

    def labels(self) -> np.ndarray:
        check_single_label(self, self.listing.name)
        return self._column("labels")

    def class_counts(self) -> np.ndarray:
        if not self.multi_label:
            return counted(self.labels(), self.num_classes)
        found = []
        for split, selected in self._parts:
            ragged: Any = self.listing.files[split].labels
            found.append(ragged.part(selected)[0])
        return counted(np.concatenate(found), self.num_classes)

    def weights(self) -> np.ndarray:
        return self._column("weights")

    def fingerprint(self) -> dict[str, str]:
        of_column = {}
        for name in ("paths", "labels", "weights"):
            arrays = []
            for split, selected in self._parts:
                column = getattr(self.listing.files[split], name)
                ragged = isinstance(column, Ragged)
                arrays += column.part(selected) if ragged else (column[selected],)
            of_column[name] = digest(*arrays)
        return of_column

    def _column(self, name):
        return self._parts.gather(
            {split: getattr(files, name) for split, files in self.listing.files.items()}
        )


def mixed(entries: Iterable[Entry]) -> list[Entry]:
    """Sorts entries into the order of `Listing.files`."""
    return sorted(entries, key=lambda entry: stable_hash(entry.path))


def hold_out(
    entries: Sequence[Entry],
    share: float,
    groups: Sequence[str] | None = None,
    rules: int = NEWEST_RULES,
) -> dict[str, list[Entry]]:
    """Divides training data into "train" and "val", the part held out for evaluation.

    An image is held out if a hash of its path is among the smallest `share` of all
    possible ones, so adding or removing others does not move it to the other side.
    Where that would hold out less than half or more than twice the share of a class,
    those with the nearest hashes change sides. So each class with two or more images
    has at least one on either side; a single image is for training. If images may have
    several labels, each label has one on either side, as far as no other label is left
    without.

    With groups, such as patients or cameras, the hash is that of the group's name, and
    a whole group is on one side. That takes precedence over classes, some of which may
    then be missing from one side; `left_without` names them.

    Args:
      entries: the training data, in the order of `mixed`.
      share: part of them to hold out.
      groups: name of each entry's group, "" if it is in none; None = no groups.
      rules: see `DataOptions`; the first rules know neither classes nor groups.
    """
    chosen = held_out(
        [entry.path for entry in entries],
        [entry.label for entry in entries],
        share,
        groups,
        rules,
    )
    found: dict[str, list[Entry]] = {"train": [], "val": []}
    for entry, out in zip(entries, chosen, strict=True):
        found["val" if out else "train"].append(entry)
    return found


def left_without(
    divided: Mapping[str, Sequence[Entry]], class_names: Sequence[str]
) -> tuple[str, ...]:
    """Names the classes that `hold_out` left without examples on one side."""
    train, evaluation = ([entry.label for entry in some] for some in divided.values())
    return tuple(uncovered(train, evaluation, class_names))


def _ends(parts: Sequence) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(
        np.int64
    )
