"""The programs of a run, to be lowered for devices that need not exist.

`fn, arguments = build(config, mesh)`, then `fn.lower(*arguments).compile()`. Nothing is
allocated: neither the devices of the mesh nor a dataset or weights need to exist.
"""

import logging
import time
from collections.abc import Hashable
from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.config import Config
from vit_jax.train.setup import Setup, set_up

logger = logging.getLogger(__name__)

Program = tuple[jax.stages.Wrapped, tuple[Any, ...]]


def build(config: Config, mesh: Mesh) -> Program:
    """Builds the jitted training step of a recipe, and abstract arguments to lower it.

    The step takes the training state, which it consumes, a batch of `config.batch_size`
    and, if the objective has any, its `extra`; it returns the next state and metrics.
    """
    setup = set_up(config, mesh=mesh)
    return setup.train_step(), setup.abstract_arguments()


def compile_steps(setup: Setup) -> dict[Hashable, Any]:
    """Compiles the training step for each choice of the objective, before any runs."""
    start = time.perf_counter()
    choices = setup.objective.choices
    programs = {choice: setup.lower(choice).compile() for choice in choices}
    if len(choices) > 1:
        logger.info(
            "%-10s %d programs of the training step in %.1f s",
            *("compiled", len(choices), time.perf_counter() - start),
        )
    return programs


def build_predict(config: Config, mesh: Mesh) -> Program:
    """Builds the jitted prediction of a recipe's model, and its abstract arguments.

    It takes the model's parameters and uint8 images [b, h, w, c] and returns logits
    [b, k]. b is `config.eval_batch_size`, rounded up to what the mesh needs.
    """
    setup = set_up(config, mesh=mesh)
    model = sharding.PlacedModel(setup.model, mesh)

    def predict(params: Any, images: jax.Array) -> Any:
        return model(params, setup.preprocessing.normalize(images))

    rows = sharding.padded_batch_size(setup.config.eval_batch_size, mesh)
    size = (*setup.architecture.image_size, setup.architecture.channels)
    spread = sharding.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((rows, *size), "uint8", sharding=spread)
    step = jax.jit(predict, out_shardings=spread)
    return step, (setup.abstract_state().params, images)
