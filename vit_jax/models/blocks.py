"""The transformer block: its architecture record, its modules, and tables of kinds.

A new kind of MLP or norm is a row of `MLPS` or `NORMS`, the fields that it needs in the
record, and a row of `vit_jax.sharding.PARAMETERS` for each new name of a matrix.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from vit_jax.models.attention.formulations import attend
from vit_jax.models.dropout import drop
from vit_jax.models.layers import FLOAT32, GELU, Layers, normal, xavier_uniform
from vit_jax.models.lora import LoraArchitecture
from vit_jax.models.prompts import NO_PROMPTS, Prompts
from vit_jax.models.taps import Taps

# Names attention's result for rematerialisation policies, which recognise matrix
# products but not kernels.
ATTENDED = "attended"


@dataclasses.dataclass(frozen=True)
class NormArchitecture:
    """The choice of norm: a row of `NORMS` and its numbers."""

    epsilon: float = 1e-6
    type: str = "layernorm"


@dataclasses.dataclass(frozen=True)
class AttentionArchitecture:
    """The choice of attention between tokens."""

    num_heads: int
    qkv_bias: bool = True  # on queries, keys and values


@dataclasses.dataclass(frozen=True)
class MlpArchitecture:
    """The choice of MLP: a row of `MLPS` and its numbers."""

    hidden: int  # units between its layers
    gelu: str = "tanh"
    type: str = "plain"


@dataclasses.dataclass(frozen=True)
class BlockArchitecture:
    """The part of an architecture that `Block` and `MapHead` read."""

    norm: NormArchitecture
    attention: AttentionArchitecture
    mlp: MlpArchitecture
    layer_scale: bool = False
    lora: LoraArchitecture | None = None  # of a block's layers; a MAP head has none


class Attention(nn.Module):
    """Multi-head attention; each head's channels are adjacent in the projections.

    Attributes:
      architecture: heads and biases.
      layers: constructors of the projections.
      implementation: a row of `attention.formulations.IMPLEMENTATIONS`.
      remat: recompute everything between the projections in the backward pass.
    """

    architecture: AttentionArchitecture
    layers: Layers = FLOAT32
    implementation: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        source: Float[Array, "b m d"],
        taps: Taps | None = None,
    ) -> Float[Array, "b n d"]:
        """Attends from `x` to `source`.

        The taps may be on "queries" [b, n, d], "keys" and "values" [b, m, d] and
        "attention", the float32 weights [b, heads, n, m].
        """
        a, placement = self.architecture, self.layers.placement
        taps = taps or Taps()
        dense = partial(self.layers.dense, x.shape[-1], kernel_init=xavier_uniform)

        def heads(x, name, several):
            b, n, _ = x.shape
            x = taps(several, dense(use_bias=a.qkv_bias, name=name)(x))
            x = x.reshape(b, n, a.num_heads, -1)
            return placement.constrain(x, "batch", None, "heads", None)

        core = partial(
            attend,
            implementation=self.implementation,
            return_weights="attention" in taps.wanted,
            added=taps.added.get("attention"),
            placement=placement,
        )
        if self.remat:
            core = jax.checkpoint(core)
        y, weights = core(
            heads(x, "query", "queries"),
            heads(source, "key", "keys"),
            heads(source, "value", "values"),
        )
        if weights is not None:
            taps.found["attention"] = weights
        y = checkpoint_name(y.reshape(x.shape), ATTENDED)
        return dense(name="out")(y)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, applied to each token separately."""

    architecture: MlpArchitecture
    layers: Layers = FLOAT32
    dropout_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = xavier_uniform
    bias_init: nn.initializers.Initializer = normal(1e-6)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "b n d"]:
        """Computes the new tokens; without a key, nothing is dropped."""
        a = self.architecture
        dense = partial(
            self.layers.dense, kernel_init=self.kernel_init, bias_init=self.bias_init
        )
        keys: Any = [None] * 2 if key is None else jax.random.split(key)
        y = dense(a.hidden, name="fc1")(x)
        y = GELU[a.gelu](self.layers.placement.constrain(y, "batch", None, "hidden"))
        y = drop(y, self.dropout_rate, keys[0])
        y = dense(x.shape[-1], name="fc2")(y)
        return drop(y, self.dropout_rate, keys[1])


def _layer_norm(architecture: NormArchitecture, layers: Layers, name: str) -> nn.Module:
    return layers.layer_norm(epsilon=architecture.epsilon, name=name)


# Kind → constructor of the module from the kind's record, layers and a name. An MLP
# also takes the other fields of `Mlp`, and is called like `Mlp`.
NORMS: dict[str, Callable[..., Any]] = {"layernorm": _layer_norm}
MLPS: dict[str, Callable[..., Any]] = {"plain": Mlp}


class Block(nn.Module):
    """Attention between tokens, then an MLP on each, both residual (eq. 2, 3).

    Attributes:
      architecture: the choice of norm, attention, MLP and LayerScale.
      layers: constructors for the dtype and the devices.
      attention: a row of `attention.formulations.IMPLEMENTATIONS`.
      dropout_rate: applied after attention and after both layers of the MLP.
      layer_scale_init: initial value of LayerScale (arXiv:2103.17239).
      remat_attention: recompute attention in the backward pass.
      prompts: the block's own prompts, which its tokens read.
    """

    architecture: BlockArchitecture
    layers: Layers = FLOAT32
    attention: str = "auto"
    dropout_rate: float = 0.0
    layer_scale_init: float = 1e-4
    remat_attention: bool = False
    prompts: Prompts = NO_PROMPTS

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        key: Key[Array, ""] | None = None,
        skip_rate: Float[Array | np.ndarray, ""] | np.float32 | None = None,
        taps: Taps | None = None,
        read: int | None = None,
    ) -> Float[Array, "b r d"]:
        """Computes the first `read` tokens, by default all.

        Without a key, nothing is dropped. The taps may be on all of `taps.OF_BLOCKS`
        but the result, which the encoder taps. "norm1", "keys" and "values" have a row
        for each token, and then for each of the block's prompts; the weights of
        attention have such columns.
        """
        taps = taps or Taps()
        a = self.architecture
        norm = partial(NORMS[a.norm.type], a.norm, self.layers)
        keys: Any = [None] * 4 if key is None else jax.random.split(key, 4)

        if self.prompts.count:
            read = x.shape[1] if read is None else read
            x = self.prompts.join(self, x, key)
        y = taps("norm1", norm(name="norm1")(x))
        attention = Attention(
            a.attention,
            self.layers,
            self.attention,
            self.remat_attention,
            name="attention",
        )
        x = x[:, :read]
        y = attention(y[:, :read], y, taps)
        y = drop(y, self.dropout_rate, keys[0])
        y = self._scale(y, "layer_scale1")
        x = x + drop(y, skip_rate, keys[1], whole_examples=True)

        y = norm(name="norm2")(x)
        mlp = MLPS[a.mlp.type](a.mlp, self.layers, self.dropout_rate, name="mlp")
        y = mlp(y, keys[2])
        y = self._scale(y, "layer_scale2")
        return x + drop(y, skip_rate, keys[3], whole_examples=True)

    def _scale(self, y, name):
        if not self.architecture.layer_scale:
            return y
        init = nn.initializers.constant(self.layer_scale_init)
        scale = self.param(name, init, y.shape[-1:])
        return y * scale.astype(y.dtype).reshape(1, 1, -1)
