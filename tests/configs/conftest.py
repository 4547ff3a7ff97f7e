"""Access to the shipped recipes."""

import logging
import pathlib

import jax
import numpy as np
import pytest

from vit_jax.checkpoints.description import Description
from vit_jax.config import to_plain
from vit_jax.config.recipes import load_recipe
from vit_jax.train.setup import set_up
from vit_jax.train.start import fit_weights
from vit_jax.weights.contents import Weights

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="session")
def load():
    """Returns a function of a recipe's name, its argument and overrides."""

    def load(name, argument="", *overrides):
        suffix = f":{argument}" if argument else ""
        flag = f"--config={CONFIGS / name}.py{suffix}"
        return load_recipe(["main", flag, *overrides])[0]

    return load


@pytest.fixture
def fitted(caplog):
    """Returns a function that fits weights of one recipe's run to another recipe.

    The values are the same throughout an array, so that large models take no memory. It
    returns the weights, the fitted ones and the lines that were logged.
    """

    def fit(first, second):
        setup = set_up(first)
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x: np.broadcast_to(np.float32(rng.normal()), x.shape),
            setup.model_params(setup.param_shapes),
        )
        names = tuple(map(str, range(setup.info.num_classes)))
        description = Description(
            *(setup.architecture, setup.preprocessing),
            *(names if "head" in params else (), to_plain(setup.config), 1),
            outputs=setup.objective.outputs(setup.config),
        )
        target = set_up(second, pretrained=description)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = fit_weights(target, Weights(description, params), names)
        return params, found, caplog.messages

    return fit
