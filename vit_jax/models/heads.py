"""Heads: attention pooling, and the linear layer that computes logits."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.blocks import MLPS, NORMS, Attention, BlockArchitecture
from vit_jax.models.layers import (
    FLOAT32,
    Layers,
    make_layers,
    normal,
    xavier_uniform,
    zeros,
)


class MapHead(nn.Module):
    """Attention pooling: a learned probe attends to the patches (arXiv:2106.04560)."""

    architecture: BlockArchitecture
    layers: Layers = FLOAT32
    attention: str = "auto"

    @nn.compact
    def __call__(self, patches: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """Pools the patches of each image into one vector."""
        a, layers = self.architecture, self.layers
        b, _, d = patches.shape
        probe = self.param("probe", xavier_uniform, (1, 1, d)).astype(layers.dtype)
        # Published heads have these biases even if their blocks do not.
        heads = dataclasses.replace(a.attention, qkv_bias=True)
        attention = Attention(heads, layers, self.attention, name="attention")
        x, _ = attention(jnp.broadcast_to(probe, (b, 1, d)), patches)
        y = NORMS[a.norm.type](a.norm, make_layers(layers.dtype), name="norm")(x)
        x = x + MLPS[a.mlp.type](a.mlp, layers, name="mlp")(y)
        return x[:, 0]


def apply_head(
    x: Float[Array, "b d"], classes: int, bias: float, std: float, name: str
) -> Float[Array, "b k"]:
    """Computes float32 logits; without classes, returns the vector in float32.

    Declares the head in the module that is being called.

    Args:
      x: the head's input.
      classes: number of classes; 0 = no head.
      bias: initial bias.
      std: standard deviation of the initial kernel; 0 = all zeros.
      name: name of the head's subtree.
    """
    x = x.astype(jnp.float32)
    if not classes:
        return x
    bias_init = nn.initializers.constant(bias)
    kernel_init = normal(std) if std else zeros
    return nn.Dense(classes, kernel_init=kernel_init, bias_init=bias_init, name=name)(x)
