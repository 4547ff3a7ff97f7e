"""The FLOPs of a training step, from those of its model (`vit_jax.models.flops`)."""

from typing import Any

import jax

from vit_jax import models
from vit_jax.models.flops import Flops as Flops
from vit_jax.models.flops import count as count
from vit_jax.models.flops import forward_of, of_program
from vit_jax.optim.groups import Groups
from vit_jax.optim.sharpness import gradient_passes
from vit_jax.train.setup import Setup


def count_training(architecture: models.ViTOrMixer, groups: Groups) -> int:
    """Counts the FLOPs per image of the forward and the backward pass.

    Where parameters are frozen, a product needs only the gradients from which those of
    trained parameters follow.
    """
    if not groups.freezes:
        return count(architecture).training
    forward, (variables, images) = forward_of(architecture)

    def gradient(params: Any, images: jax.Array) -> Any:
        def summed(trained: Any) -> jax.Array:
            merged = groups.merged(trained, params)
            return forward({"params": merged}, images)[0].sum()

        return jax.value_and_grad(summed)(groups.trained(params))

    return of_program(jax.make_jaxpr(gradient)(variables["params"], images).jaxpr).total


def of_step(setup: Setup) -> int:
    """Counts the FLOPs per image of a run's training step.

    If patch sizes are drawn, it is the step of the most tokens; SAM computes two
    gradients.
    """
    passes = gradient_passes(setup.config)
    return passes * count_training(setup.heaviest, setup.groups)
