"""The compiled programs of a run: what training, plan and benchmark lower and run.

`fn, arguments = build(config, mesh)`, then `fn.lower(*arguments).compile()`. Nothing is
allocated: the devices of the mesh need not be there, nor a dataset or weights.
"""

from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.config import Config
from vit_jax.evaluators.classification import padded_batch_size
from vit_jax.train.setup import Setup, set_up

Program = tuple[jax.stages.Wrapped, tuple[Any, Any]]


def build(config: Config, mesh: Mesh) -> Program:
    """The jitted training step of a recipe, and the abstract arguments to lower it.

    The step takes the training state, which it consumes, and a batch of
    `config.batch_size`; it returns the next state and metrics.
    """
    setup = set_up(config, mesh=mesh)
    return setup.train_step(), (setup.abstract_state(), setup.abstract_batch())


def build_eval(config: Config, mesh: Mesh) -> Program:
    """The same of the evaluation: parameters and a batch → sums over its examples.

    The batch has `config.eval_batch_size` rows, or as many more as the mesh needs.
    """
    setup = set_up(config, mesh=mesh)
    batch = setup.abstract_batch(_eval_rows(setup))
    return setup.eval_step(), (setup.abstract_state().params, batch)


def build_predict(config: Config, mesh: Mesh) -> Program:
    """The same of prediction: parameters and uint8 images [b, h, w, c] → logits [b, k].

    There are as many images as `build_eval` has.
    """
    setup = set_up(config, mesh=mesh)
    placement = sharding.MeshPlacement(mesh)
    model = setup.model.clone(placement=placement)

    def predict(params: Any, images: jax.Array) -> Any:
        params = placement.gather_outside_blocks(params)
        return model.apply({"params": params}, setup.preprocessing.normalize(images))

    images = setup.abstract_batch(_eval_rows(setup))["image"]
    step = jax.jit(predict, out_shardings=sharding.batch_sharding(mesh))
    return step, (setup.abstract_state().params, images)


def _eval_rows(setup: Setup) -> int:
    return padded_batch_size(setup.config.eval_batch_size, setup.mesh)
