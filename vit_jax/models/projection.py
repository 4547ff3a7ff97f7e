"""The projection head of self-distillation (DINO, arXiv:2104.14294, appendix C).

An MLP leads from the features to a narrow bottleneck, whose vectors get length 1; a
weight-normalised linear layer without bias leads from there to many outputs.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.layers import make_layers, normal, ones
from vit_jax.models.placement import Placement

_EPSILON = 1e-12  # PyTorch's, of `functional.normalize`


class ProjectionHead(nn.Module):
    """A head from features to the logits of self-distillation.

    Attributes:
      outputs: number of logits.
      hidden: width of the MLP's hidden layers.
      bottleneck: width of the vectors of length 1.
      depth: number of the MLP's linear layers, the one into the bottleneck included.
      fixed_norm: every output's weights have length 1; otherwise, their lengths
        (`last_layer/scale`) are trained and begin with 1.
      dtype: dtype of activations; lengths and logits are always float32.
      placement: where arrays lie, if there are several devices.
    """

    outputs: int
    hidden: int = 2048
    bottleneck: int = 256
    depth: int = 3
    fixed_norm: bool = True
    dtype: Any = jnp.float32
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Computes the logits in float32."""
        dense = make_layers(self.dtype, self.placement).dense
        widths = [self.hidden] * (self.depth - 1) + [self.bottleneck]
        between = [None] * (features.ndim - 2)
        x = features
        for number, width in enumerate(widths, start=1):
            if number > 1:
                x = nn.gelu(x, approximate=False)
            x = dense(width, kernel_init=normal(0.02), name=f"fc{number}")(x)
        last = WeightNormed(
            self.outputs, self.fixed_norm, dtype=self.dtype, name="last_layer"
        )
        # Few numbers per example meet many outputs, which the devices divide.
        constrain = self.placement.constrain
        x = constrain(_unit(x.astype(jnp.float32)), "batch", *between, None)
        return constrain(last(x), "batch", *between, "hidden")


class WeightNormed(nn.Module):
    """A linear layer without bias: a direction and a length for each output.

    Attributes:
      outputs: number of outputs.
      fixed_norm: all lengths are 1 and not parameters.
      dtype: dtype of the product's inputs.
    """

    outputs: int
    fixed_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Multiplies by scale · kernel / ‖kernel‖, with one norm for each output."""
        shape = x.shape[-1], self.outputs
        kernel = self.param("kernel", _torch_uniform, shape)
        weights = kernel / jnp.linalg.norm(kernel, axis=0)[None]
        if not self.fixed_norm:
            weights = weights * self.param("scale", ones, (self.outputs,))[None]
        return jnp.matmul(
            x.astype(self.dtype),
            weights.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )


def _unit(x: Array) -> Array:
    """Divides vectors by their length, or by 1e-12 if that is larger."""
    # The maximum is inside the root, so that the gradient at zero is 0, not NaN.
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, _EPSILON**2))


def _torch_uniform(key: Any, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """Draws PyTorch's default weights of a linear layer: uniform, ±1/√inputs."""
    limit = shape[0] ** -0.5
    return nn.initializers.uniform(2 * limit)(key, shape, dtype) - limit
