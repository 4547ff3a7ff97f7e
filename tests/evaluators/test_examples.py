"""The examples of an evaluation."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources.protocol import Example
from vit_jax.evaluators.examples import Data

TWELVE = np.arange(16, dtype=np.uint16).reshape(4, 4) * 273  # 0 … 4095


class Deep:
    """Two grey images of 12 bits, whose files do not say so."""

    num_classes, multi_label, class_names = 2, False, ("a", "b")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.fromarray(TWELVE >> index).save(file, "PNG")
        return Example(file.getvalue(), index, f"{index}.png")


@pytest.mark.parametrize("trained_with", [0, 65535])
def test_white_of_the_data_takes_precedence_over_the_models(subject, trained_with):
    model = subject(2, names=("a", "b"))
    preprocessing = model.preprocessing.for_white(trained_with)
    model = model._replace(preprocessing=preprocessing)
    for white_level, expected in ((4095, TWELVE / 4095 * 255), (0, TWELVE >> 8)):
        data = Data(lambda _: Deep(), "test", "train", 2, white_level=white_level)
        with data.examples(model).batches() as batches:
            (rows,) = batches
        np.testing.assert_array_equal(rows["image"][0, :, :, 0], np.rint(expected))
