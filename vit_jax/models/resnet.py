"""The ResNet that feeds a hybrid's patch embedding (arXiv:1912.11370, 2010.11929 3.1).

Convolutions standardise their weights, GroupNorm takes the place of BatchNorm, and the
activation comes after each residual sum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.layers import lecun_normal, ones, zeros

_ROOT_WIDTH = 64
_GROUPS = 32


class Trunk(nn.Module):
    """The whole ResNet, from images to features of a fourth of their size or less.

    Attributes:
      stages: residual units per stage; each stage after the first halves the size.
      numerics: a row of `NUMERICS`.
      dtype: dtype of activations; statistics are always float32.
      remat: recompute each unit in the backward pass.
    """

    stages: tuple[int, ...]
    numerics: str = "google"
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b fh fw f"]:
        """Computes features, smaller per side by 4 · 2^(stages − 1), rounded up."""
        x = StdConv(_ROOT_WIDTH, 7, 2, self.numerics, self.dtype, name="conv_root")(
            images
        )
        x = nn.relu(_group_norm(self, "gn_root")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, units in enumerate(self.stages):
            x = Stage(
                units=units,
                features=_ROOT_WIDTH * 2**i,
                stride=2 if i else 1,
                numerics=self.numerics,
                dtype=self.dtype,
                remat=self.remat,
                name=f"block{i + 1}",
            )(x)
        return x


class Stage(nn.Module):
    """Residual units of one size; the first brings the input to that size."""

    units: int
    features: int
    stride: int = 1
    numerics: str = "google"
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b fh fw f"]:
        unit = nn.remat(ResidualUnit) if self.remat else ResidualUnit
        for i in range(self.units):
            stride = 1 if i else self.stride
            name = f"unit{i + 1}"
            x = unit(self.features, stride, self.numerics, self.dtype, name=name)(x)
        return x


class ResidualUnit(nn.Module):
    """A bottleneck: 1 × 1 to few channels, 3 × 3, then 1 × 1 to four times as many."""

    features: int
    stride: int = 1
    numerics: str = "google"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b fh fw f"]:
        conv = partial(StdConv, numerics=self.numerics, dtype=self.dtype)
        wide = 4 * self.features

        shortcut = x
        if x.shape[-1] != wide:
            shortcut = conv(wide, 1, self.stride, name="conv_proj")(x)
            shortcut = _group_norm(self, "gn_proj")(shortcut)
        y = conv(self.features, 1, name="conv1")(x)
        y = nn.relu(_group_norm(self, "gn1")(y))
        y = conv(self.features, 3, self.stride, name="conv2")(y)
        y = nn.relu(_group_norm(self, "gn2")(y))
        y = conv(wide, 1, name="conv3")(y)
        # Zero scale, so that a new unit passes its input on.
        y = _group_norm(self, "gn3", zeros)(y)
        return nn.relu(shortcut + y)


class StdConv(nn.Module):
    """A convolution with weights of mean 0 and deviation 1 per output channel."""

    features: int
    kernel_size: int
    stride: int = 1
    numerics: str = "google"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b fh fw f"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", lecun_normal, shape)
        kernel = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
        variance = jnp.square(kernel).mean(axis=(0, 1, 2), keepdims=True)
        kernel = kernel / NUMERICS[self.numerics].spread(variance)
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Numerics(NamedTuple):
    """The constants that keep divisors from zero; published implementations differ."""

    spread: Callable[[Array], Array]  # variance of the weights → their divisor
    group_norm_epsilon: float


def _google_spread(variance: Array) -> Array:
    # The slope of the root is infinite at zero: gradients of constant weights would be
    # NaN.
    return jnp.sqrt(jnp.maximum(variance, 1e-30)) + 1e-5


NUMERICS = {
    "google": Numerics(_google_spread, 1e-6),
    "timm": Numerics(lambda variance: jnp.sqrt(variance + 1e-8), 1e-5),
}


def _group_norm(module: Any, name: str, scale_init: Any = ones) -> nn.GroupNorm:
    return nn.GroupNorm(
        _GROUPS,
        epsilon=NUMERICS[module.numerics].group_norm_epsilon,
        dtype=module.dtype,
        scale_init=scale_init,
        name=name,
    )
