"""The programs of a run, lowered for devices that need not be there.

`fn, arguments = build(config, mesh)`, then `fn.lower(*arguments).compile()`. Nothing is
allocated: the devices of the mesh need not be there, nor a dataset or weights.
"""

from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.config import Config
from vit_jax.evaluators.classification import padded_batch_size
from vit_jax.train.setup import set_up

Program = tuple[jax.stages.Wrapped, tuple[Any, ...]]


def build(config: Config, mesh: Mesh) -> Program:
    """The jitted training step of a recipe, and the abstract arguments to lower it.

    The step takes the training state, which it consumes, a batch of
    `config.batch_size` and, where the objective reads more than these, its `extra`; it
    returns the next state and metrics.
    """
    setup = set_up(config, mesh=mesh)
    return setup.train_step(), setup.abstract_arguments()


def build_predict(config: Config, mesh: Mesh) -> Program:
    """The jitted prediction of a recipe's model, and its abstract arguments.

    It takes the model's parameters and uint8 images [b, h, w, c], b being
    `config.eval_batch_size` or as many more as the mesh needs, and returns logits
    [b, k].
    """
    setup = set_up(config, mesh=mesh)
    model = sharding.PlacedModel(setup.model, mesh)

    def predict(params: Any, images: jax.Array) -> Any:
        return model(params, setup.preprocessing.normalize(images))

    rows = padded_batch_size(setup.config.eval_batch_size, mesh)
    size = (*setup.architecture.image_size, setup.architecture.channels)
    spread = sharding.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((rows, *size), "uint8", sharding=spread)
    step = jax.jit(predict, out_shardings=spread)
    return step, (setup.abstract_state().params, images)
