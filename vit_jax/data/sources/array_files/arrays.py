"""Array files as data sets: images and labels in one .npz file, or in IDX files.

The arrays of an .npz file have the names of one of these schemes:

    images, labels                                a tenth is held out for evaluation
    train_images, train_labels, val_images, …     MedMNIST's names
    x_train, y_train, x_test, y_test              Keras's names

Images are uint8 [n, h, w] or [n, h, w, c]. Labels are whole numbers [n] or [n, 1]
counted from 0, or zeros and ones [n, k], if an example may have any number of k
classes. Optional are `weights` or `train_weights` …, numbers of at least 0, and
`class_names`, strings. A folder of IDX files (see `idx`) holds the same arrays.

A split's images stay in memory as long as one of its sources exists. Nothing is ever
unpickled.
"""

import logging
import weakref

import numpy as np

from vit_jax.data.hashing import digest
from vit_jax.data.sources import splits
from vit_jax.data.sources.array_files.reading import (
    ArrayFile,
    read_array_file,
    reader_of,
    version,
)
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.data.sources.protocol import (
    DatasetInfo,
    Example,
    check_single_label,
    counted,
)
from vit_jax.errors import UserError
from vit_jax.words import byte_size

EXTENSIONS = (".npz",)

logger = logging.getLogger(__name__)
# (file, its version, name) → images, shared by two splits of one array.
_held: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


class ArrayContents:
    """An opened file: labels and weights of all splits, without the images."""

    def __init__(self, path: str, options: DataOptions = DEFAULT_OPTIONS):
        self._file = read_array_file(path, options)
        self.remarks = self._file.remarks

    @property
    def info(self) -> DatasetInfo:
        file = self._file
        return DatasetInfo(
            file.path,
            len(file.class_names),
            file.num_examples,
            file.class_names,
            *list(file.parts)[:2],
            multi_label=file.multi_label,
            held_out=file.held_out,
            problems=file.problems,
        )

    def split(self, expression: str) -> "ArrayImages":
        splits.check(expression, self._file.problems)
        return ArrayImages(self._file, expression)


class ArrayImages:
    """One split of an array file; images are uint8 [h, w, c]."""

    def __init__(self, file: ArrayFile, split: str):
        self._file, self._split = file, split
        self.class_names = file.class_names
        self.multi_label = file.multi_label
        self._parts = splits.Parts(split, file.num_examples, f"the file {file.path}")
        self._images = {
            name: _images(file, file.parts[name].images) for name in self._parts.names
        }

    def __reduce__(self):
        # Another process reads the file again, which is faster than sending it all.
        return _read_split, (self._file.path, self._split, self._file.options)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Example:
        split, position = self._parts[index]
        part = self._file.parts[split]
        row, label = part.rows[position], part.labels[position]
        image = self._images[split][row]
        return Example(
            image if image.ndim == 3 else image[:, :, None],
            tuple(np.flatnonzero(label).tolist()) if self.multi_label else int(label),
            f"{self._file.path}/{part.images}[{row}]",
            float(part.weights[position]),
        )

    def labels(self) -> np.ndarray:
        check_single_label(self, self._file.path)
        parts = self._file.parts.items()
        return self._parts.gather({split: part.labels for split, part in parts})

    def class_counts(self) -> np.ndarray:
        if not self.multi_label:
            return counted(self.labels(), self.num_classes)
        parts = self._file.parts.items()
        hot = self._parts.gather({split: part.labels for split, part in parts})
        return (hot != 0).sum(axis=0).astype(np.float64)

    def weights(self) -> np.ndarray:
        parts = self._file.parts.items()
        return self._parts.gather({split: part.weights for split, part in parts})

    def fingerprint(self) -> dict[str, str]:
        file, used = self._file, list(self._parts)
        sums = reader_of(file.path).checksums(file.path)
        rows = [file.parts[split].rows[selected] for split, selected in used]
        images = [f"{sums[file.parts[split].images]}" for split, _ in used]
        labels = [file.parts[split].labels[selected] for split, selected in used]
        return {
            "images": digest(*images, *rows),
            "labels": digest(*labels),
            "weights": digest(self.weights()),
        }


def _read_split(path: str, split: str, options: DataOptions) -> ArrayImages:
    return ArrayContents(path, options).split(split)


def _images(file: ArrayFile, name: str) -> np.ndarray:
    key = (file.path, file.version, name)
    images = _held.get(key)
    if images is None:
        if version(file.path) != file.version:
            raise UserError(
                f"{file.path} was written again after its labels had been read. Start "
                "again once the file is complete."
            )
        images = reader_of(file.path).read(file.path, name)
        size = byte_size(images.nbytes)
        logger.info("%s: %s holds %s in memory", file.path, name, size)
        images.flags.writeable = False  # examples are views of it
        _held[key] = images
    return images
