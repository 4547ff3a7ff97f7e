"""Measured forward passes of a model that has no weights yet."""

import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.models import ViTOrMixer, abstract_params, build
from vit_jax.models.attention.formulations import FASTEST_ON_CPU
from vit_jax.plan.topologies import topology
from vit_jax.train.memory import Bytes

_PASSES = 3  # measured, after one that is not


class ForwardPass(NamedTuple):
    """The time and the memory of one forward pass on a device."""

    seconds: float | None  # median of some passes; None: it would not fit
    peak_bytes: int  # parameters, images and activations, as the compiler counts them


def measure_forward(architecture: ViTOrMixer, images: int) -> ForwardPass:
    """Runs a model on this machine's first device.

    All parameters are zero: the time of a product does not depend on its numbers. The
    dtype is bfloat16, on the CPU float32, as in training.

    Args:
      architecture: the model.
      images: number of images in a pass.
    """
    device, on_cpu = jax.devices()[0], jax.devices()[0].platform == "cpu"
    a = architecture
    model = build(
        a,
        dtype=jnp.float32 if on_cpu else jnp.bfloat16,
        attention=FASTEST_ON_CPU if on_cpu else "xla",
    )
    shapes = (
        {"params": abstract_params(a)},
        jax.ShapeDtypeStruct((images, *a.image_size, a.channels), jnp.float32),
    )
    program = jax.jit(model.apply).lower(*shapes).compile()
    peak = Bytes.of(program.memory_analysis()).peak
    if peak > topology().usable_bytes:
        return ForwardPass(None, peak)
    arguments = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype, device=device), shapes
    )
    seconds = []
    for _ in range(_PASSES + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return ForwardPass(statistics.median(seconds[1:]), peak)
