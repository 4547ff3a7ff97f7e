"""Teachers for the tests of distillation: small files of random weights."""

import dataclasses

import jax
import numpy as np
import pytest

from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture, abstract_params
from vit_jax.weights.saving import save_weights

DIGITS = tuple("0123456789")
SIZES = {
    **{"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "channels": 3},
    **{"patch_size": (4, 4), "image_size": (8, 8), "num_classes": 10},
}


@pytest.fixture
def make_teacher(tmp_path):
    """Returns a function that writes a model to a file and returns the path."""

    def make(
        name="teacher",
        *,
        class_names=DIGITS,
        outputs="exclusive",
        architecture=None,
        params=None,
        seed=0,
        mean=(0.5,),
        std=(0.5,),
        **fields,
    ):
        if architecture is None:
            architecture = Architecture(**{**SIZES, **fields})
        rng = np.random.default_rng(seed)
        if params is None:
            params = jax.tree.map(
                lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
                abstract_params(architecture),
            )
        description = Description(
            architecture,
            Preprocessing(
                architecture.image_size, architecture.channels, mean=mean, std=std
            ),
            tuple(class_names),
            to_plain(default_config()),
            step=0,
        )
        description = dataclasses.replace(description, outputs=outputs)
        path = tmp_path / f"{name}.safetensors"
        save_weights(description, params, path, "vit_jax")
        return str(path)

    return make
