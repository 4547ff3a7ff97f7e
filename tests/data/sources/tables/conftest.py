"""Images of known pixels for the tests of tables."""

import dataclasses

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def root(tmp_path):
    """A folder with images/0.png … 11.png of 4×4 pixels, each of its number's grey."""
    (tmp_path / "images").mkdir()
    for k in range(12):
        pixels = np.full((4, 4, 3), k, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.png")
    return tmp_path


@pytest.fixture
def opened():
    """A function that opens a data set and describes all of its examples.

    It returns the listing and {split: {file name: names of its classes}}.
    """
    from vit_jax.data.decode import decode
    from vit_jax.data.sources.datasets import open_dataset
    from vit_jax.data.sources.options import DataOptions

    def open_it(path, **options):
        dataset = open_dataset(str(path), "", DataOptions(**options))
        remarks = (*dataset.about_name, *dataset.contents.remarks)
        contents = dataclasses.replace(dataset.contents, remarks=remarks)
        found = {}
        for split in contents.num_examples:
            source = contents.split(split)
            found[split] = {}
            for k in range(len(source)):
                one = source[k]
                labels = one.label if contents.multi_label else (one.label,)
                names = [contents.class_names[label] for label in labels]
                # The pixels say which image it is, whatever it is called.
                number = int(decode(one.image)[0, 0, 0])
                found[split][number] = "|".join(names)
        return contents, found

    return open_it


@pytest.fixture
def message():
    """A function that opens a data set in vain and returns the reason."""
    from vit_jax.data.sources.datasets import open_dataset
    from vit_jax.data.sources.options import DataOptions
    from vit_jax.errors import UserError

    def opened_in_vain(path, **options) -> str:
        with pytest.raises(UserError) as error:
            open_dataset(str(path), "", DataOptions(**options)).info.with_splits()
        return str(error.value)

    return opened_in_vain
