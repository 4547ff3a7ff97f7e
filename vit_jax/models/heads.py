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
from vit_jax.models.taps import Taps

MAP_ATTENTION = "map_attention"


class MapHead(nn.Module):
    """Attention pooling: a learned probe attends to the patches (arXiv:2106.04560)."""

    architecture: BlockArchitecture
    layers: Layers = FLOAT32
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, patches: Float[Array, "b n d"], taps: Taps | None = None
    ) -> Float[Array, "b d"]:
        """Pools the patches of each image into one vector.

        The taps may be on "map_attention", the weights by which they are read, in
        float32, [b, heads, n].
        """
        a, layers = self.architecture, self.layers
        b, _, d = patches.shape
        probe = self.param("probe", xavier_uniform, (1, 1, d)).astype(layers.dtype)
        # Published heads have these biases even if their blocks do not.
        heads = dataclasses.replace(a.attention, qkv_bias=True)
        attention = Attention(heads, layers, self.attention, name="attention")
        inner = _on_attention(taps or Taps())
        x = attention(jnp.broadcast_to(probe, (b, 1, d)), patches, inner)
        if taps is not None and "attention" in inner.found:
            taps.found[MAP_ATTENTION] = inner.found["attention"][:, :, 0]
        y = NORMS[a.norm.type](a.norm, make_layers(layers.dtype), name="norm")(x)
        x = x + MLPS[a.mlp.type](a.mlp, layers, name="mlp")(y)
        return x[:, 0]


def _on_attention(taps: Taps) -> Taps:
    """Returns the taps of the head's attention, whose only query is the probe."""
    added = {}
    if MAP_ATTENTION in taps.added:
        added["attention"] = taps.added[MAP_ATTENTION][:, :, None]
    return Taps(["attention"] if MAP_ATTENTION in taps.wanted else [], added)


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
