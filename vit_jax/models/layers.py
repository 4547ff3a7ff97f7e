"""Layers that blocks are made of."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from vit_jax.models import cpu
from vit_jax.models.attention.formulations import attend
from vit_jax.models.dropout import drop
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
# Name of what attention gives, for a rematerialisation policy: a kernel is no product.
ATTENDED = "attended"


def dense_on(placement: Placement) -> Callable[..., nn.Module]:
    """`nn.Dense` as it suits the devices."""
    return partial(nn.Dense, dot_general=cpu.product) if _cpu(placement) else nn.Dense


def patch_embedding_on(placement: Placement) -> Callable[..., nn.Module]:
    """`nn.Conv` of windows that lie side by side, likewise."""
    own = partial(nn.Conv, conv_general_dilated=cpu.patches)
    return own if _cpu(placement) else nn.Conv


def layer_norm_on(placement: Placement, dtype: Any, epsilon: float) -> Callable:
    """`nn.LayerNorm` of this epsilon, with results of this type, likewise."""
    if _cpu(placement) and dtype == jnp.float32:
        return partial(cpu.LayerNorm, epsilon)
    return partial(nn.LayerNorm, epsilon, dtype)


def _cpu(placement: Placement) -> bool:
    return placement.device_kind == "cpu"


class Attention(nn.Module):
    """Multi-head attention; a head's channels lie side by side in the projections.

    Attributes:
      remat: compute what lies between the projections once more in the backward pass.
    """

    num_heads: int
    dtype: Any = jnp.float32
    implementation: str = "auto"
    qkv_bias: bool = True
    remat: bool = False
    placement: Placement = Placement()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        source: Float[Array, "b m d"],
        return_weights: bool = False,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b heads n m"] | None]:
        """What `x` reads from `source`, and the weights it reads with if asked for."""
        d = x.shape[-1]
        how = {"dtype": self.dtype, "kernel_init": xavier_uniform}
        dense = partial(dense_on(self.placement), d, **how)

        def heads(x, name):
            b, n, _ = x.shape
            x = dense(use_bias=self.qkv_bias, name=name)(x)
            x = x.reshape(b, n, self.num_heads, -1)
            return self.placement.constrain(x, "batch", None, "heads", None)

        core = partial(
            attend,
            implementation=self.implementation,
            return_weights=return_weights,
            placement=self.placement,
        )
        if self.remat:
            core = jax.checkpoint(core)
        y, weights = core(
            heads(x, "query"), heads(source, "key"), heads(source, "value")
        )
        y = checkpoint_name(y.reshape(x.shape), ATTENDED)
        return dense(name="out")(y), weights


class Mlp(nn.Module):
    """Two layers with a GELU between them, on each token alone."""

    hidden: int
    gelu: str
    dtype: Any = jnp.float32
    dropout_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = xavier_uniform
    bias_init: nn.initializers.Initializer = normal(1e-6)
    placement: Placement = Placement()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "b n d"]:
        dense = partial(
            dense_on(self.placement),
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        keys: Any = [None] * 2 if key is None else jax.random.split(key)
        y = dense(self.hidden, name="fc1")(x)
        y = GELU[self.gelu](self.placement.constrain(y, "batch", None, "hidden"))
        y = drop(y, self.dropout_rate, keys[0])
        y = dense(x.shape[-1], name="fc2")(y)
        return drop(y, self.dropout_rate, keys[1])
