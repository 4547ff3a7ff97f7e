"""The layers of models, in the forms that suit their devices."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import cpu
from vit_jax.models.lora import LoraArchitecture, with_lora
from vit_jax.models.placement import Placement

GELU = {
    "tanh": partial(nn.gelu, approximate=True),
    "exact": partial(nn.gelu, approximate=False),
}
xavier_uniform = nn.initializers.xavier_uniform()
lecun_normal = nn.initializers.lecun_normal()
ones = nn.initializers.ones_init()
zeros = nn.initializers.zeros_init()
normal = nn.initializers.normal


@dataclasses.dataclass(frozen=True)
class Layers:
    """Constructors of layers for one dtype and one placement, from `make_layers`.

    Attributes:
      dtype: dtype of activations; bound in the constructors.
      placement: where activations lie.
      dense: `nn.Dense`, or its equivalent for these devices.
      conv: `nn.Conv` or its equivalent, for windows that do not overlap.
      layer_norm: `nn.LayerNorm` or its equivalent.
    """

    dtype: Any
    placement: Placement
    dense: Callable[..., Any]
    conv: Callable[..., Any]
    layer_norm: Callable[..., Any]


def make_layers(
    dtype: Any,
    placement: Placement = Placement(),  # noqa: B008 (it never changes)
    lora: LoraArchitecture | None = None,
    lora_dropout: float = 0.0,
) -> Layers:
    """Makes the layers of a model; the only place that distinguishes platforms.

    Args:
      dtype: dtype of activations.
      placement: where activations lie.
      lora: adapters of the dense layers; None = without.
      lora_dropout: dropout rate of the adapters' inputs, in training.
    """
    dense, conv = partial(nn.Dense, dtype=dtype), nn.Conv
    layer_norm = partial(nn.LayerNorm, dtype=dtype)
    if placement.device_kind == "cpu":
        dense = partial(dense, dot_general=cpu.product)
        conv = partial(nn.Conv, conv_general_dilated=cpu.patches)
        if dtype == jnp.float32:
            layer_norm = cpu.LayerNorm
    return Layers(
        dtype,
        placement,
        with_lora(dense, lora, lora_dropout) if lora else dense,
        partial(conv, dtype=dtype),
        layer_norm,
    )


# The default in modules: Flax's own layers, in float32.
FLOAT32 = make_layers(jnp.float32)
