"""The classes of ImageNet-1k (ILSVRC 2012) and the labels of its validation images.

The image archives contain neither. tensorflow-datasets ships both as text files, which
are read without importing it.
"""

import functools
import importlib.util
import pathlib
import re

from vit_jax.errors import UserError

# File names in the official archive of the validation images.
VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)


def package_folder() -> pathlib.Path:
    """Returns the folder of tensorflow-datasets, without importing it."""
    package = importlib.util.find_spec("tensorflow_datasets")
    assert package is not None and package.submodule_search_locations
    return pathlib.Path(package.submodule_search_locations[0])


@functools.cache
def class_names() -> tuple[str, ...]:
    """Returns the 1,000 WordNet IDs in the order of the labels, which is sorted."""
    return _lines("labels.txt")


def validation_class(file: str) -> str | None:
    """Returns the class of ILSVRC2012_val_00000001.JPEG … 00050000; else None."""
    found = VALIDATION_FILE.fullmatch(file)
    classes = _lines("validation_labels.txt")  # in the order of the files' names
    number = int(found[1]) if found else 0
    return classes[number - 1] if 0 < number <= len(classes) else None


@functools.cache
def _lines(name: str) -> tuple[str, ...]:
    file = package_folder() / "datasets" / "imagenet2012" / name
    try:
        return tuple(file.read_text(encoding="utf-8").split())
    except OSError as error:
        raise UserError(
            f"ImageNet's list of labels is not where tensorflow-datasets used to have "
            f"it ({file}): {error.strerror}. Install tensorflow-datasets 4.9.10."
        ) from error
