"""Low-rank adaptation (LoRA) of dense layers (arXiv:2106.09685)."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from vit_jax.models.dropout import drop
from vit_jax.words import did_you_mean, times

# The layers of a block that can have an adapter, in the order in which they are listed.
TARGETS = ("query", "key", "value", "out", "fc1", "fc2")
# Names for several of them.
TARGET_SETS = {"attention": TARGETS[:4], "mlp": TARGETS[4:], "all": TARGETS}
# The stream of random numbers of the adapters' dropout; see `flax.linen.Module.apply`.
RNG = "lora"


@dataclasses.dataclass(frozen=True)
class LoraArchitecture:
    """The adapters of a block's dense layers.

    Attributes:
      rank: r, the width between the two matrices of an adapter.
      alpha: α, which is divided by the rank to scale what an adapter adds.
      targets: names of the layers, some of `TARGETS` in their order.
      rank_stabilized: divide α by √r instead of r (rsLoRA, arXiv:2312.03732).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """The factor of what an adapter adds: α/r, or α/√r."""
        return self.alpha / (
            math.sqrt(self.rank) if self.rank_stabilized else self.rank
        )


def parse_targets(text: str) -> tuple[str, ...]:
    """Reads names of layers, or of sets of them, joined by ",".

    Returns:
      The layers in the order of `TARGETS`.

    Raises:
      ValueError: a name is unknown (the message has the nearest ones), or there is
        none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    choices = [*TARGETS, *TARGET_SETS]
    listed = f"choose from {', '.join(choices)}, joined by commas"
    if unknown := [name for name in names if name not in choices]:
        hints = "".join(did_you_mean(name, choices) for name in unknown)
        raise ValueError(f"no layer {', '.join(map(repr, unknown))}: {listed}{hints}")
    if not names:
        raise ValueError(f"no layer is named: {listed}")
    chosen = {layer for name in names for layer in TARGET_SETS.get(name, (name,))}
    return tuple(layer for layer in TARGETS if layer in chosen)


def target_shapes(width: int, mlp_dim: int) -> dict[str, tuple[int, int]]:
    """Returns the shape [in, out] of the kernel of each of the `TARGETS`."""
    square = (width, width)
    return {
        **dict.fromkeys(TARGET_SETS["attention"], square),
        "fc1": (width, mlp_dim),
        "fc2": (mlp_dim, width),
    }


def exceeds(rank: int, targets: tuple[str, ...], width: int, mlp_dim: int) -> str:
    """Says which matrix a rank exceeds, as the end of a sentence; "" if none."""
    shapes = target_shapes(width, mlp_dim)
    smallest = min(targets, key=lambda name: min(shapes[name]), default="")
    if not smallest or rank <= min(shapes[smallest]):
        return ""
    return (
        f"exceeds the smaller side of the matrix of {smallest}, which is "
        f"{times(shapes[smallest])}: use at most {min(shapes[smallest])}"
    )


def lora_conflicts(architecture: Any) -> list[str]:
    """Lists conflicts among the fields of an architecture that describe adapters."""
    a, rank = architecture, architecture.lora_rank
    if not rank:
        others = ("lora_alpha", "lora_targets", "lora_rank_stabilized")
        given = [name for name in others if getattr(a, name)]
        return [f"{', '.join(given)} needs lora_rank"] if given else []
    problems = []
    if not a.lora_alpha:
        problems.append("lora_alpha is 0, so the adapters would have no effect")
    if not a.lora_targets:
        problems.append("lora_rank needs lora_targets")
    if reason := exceeds(rank, a.lora_targets, a.width, a.mlp_dim):
        problems.append(f"lora_rank {rank} {reason}")
    return problems


def uniform_of_inputs(
    key: Array, shape: tuple[int, ...], dtype: Any = "float32"
) -> Array:
    """Draws matrices [in, …] uniformly from ±1/√in, as PEFT does for A."""
    limit = 1 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -limit, limit)


class LoraDense(nn.Module):
    """`nn.Dense` with a LoRA adapter: two small matrices A and B, which are trained.

    Computes x·K + b + scale · (drop(x)·A)·B. B starts at zero, so the layer starts as
    the one without an adapter. The kernel itself is never changed.

    Attributes:
      lora: rank and scale.
      lora_dropout: dropout rate of the adapter's input; nothing is dropped in a call
        without the random stream `RNG`.
      dot_general: replaces `jax.lax.dot_general`.
    """

    features: int
    lora: LoraArchitecture
    lora_dropout: float = 0.0
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    dot_general: Callable[..., Array] = lax.dot_general

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """Computes the layer with its adapter."""
        inputs, rank = x.shape[-1], self.lora.rank
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
        a = self.param("lora_a", uniform_of_inputs, (inputs, rank))
        b = self.param("lora_b", nn.initializers.zeros_init(), (rank, self.features))
        x, kernel, bias, a, b = promote_dtype(x, kernel, bias, a, b, dtype=self.dtype)

        def product(x: Array, matrix: Array) -> Array:
            last_with_first = (((x.ndim - 1,), (0,)), ((), ()))
            return self.dot_general(x, matrix, last_with_first, precision=None)

        y = product(x, kernel)
        if bias is not None:
            y += bias.reshape(*[1] * (y.ndim - 1), -1)
        if self.lora_dropout and self.has_rng(RNG):
            x = drop(x, self.lora_dropout, self.make_rng(RNG))
        return y + product(product(x, a) * self.lora.scale, b)


def with_lora(
    dense: Any, lora: LoraArchitecture, dropout_rate: float
) -> Callable[..., nn.Module]:
    """Makes a constructor of dense layers that gives the targets their adapters.

    Args:
      dense: the constructor for layers without one, a partial `nn.Dense`.
      lora: the adapters.
      dropout_rate: of their inputs, in training.
    """
    adapted = partial(LoraDense, lora=lora, lora_dropout=dropout_rate, **dense.keywords)

    def make(*args: Any, name: str, **how: Any) -> nn.Module:
        return (adapted if name in lora.targets else dense)(*args, name=name, **how)

    return make
