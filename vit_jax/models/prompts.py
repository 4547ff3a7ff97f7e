"""Visual prompts: learned tokens beside those of an image (VPT, arXiv:2203.12119).

They have no positions, and attention does not know the order of tokens. So they follow
the image's tokens, wherever the original puts them: classes, heads and whatever else
reads tokens by their index find them where they are without prompts.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.dropout import drop

NAME = "prompts"  # of the parameter [1, count, d]: the model's, or a block's
# The intermediate with the weights by which the image's tokens read prompts.
ATTENTION = "prompt_attention"

# Derives a key from one that other layers use, without changing their draws.
_STREAM = 2203


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts that join a sequence of tokens once.

    Attributes:
      count: number of prompts.
      bound: largest initial value; see `initial_bound`.
      dropout_rate: dropout rate of their elements, per image.
    """

    count: int = 0
    bound: float = 0.0
    dropout_rate: float = 0.0

    def join(
        self, module: nn.Module, x: Float[Array, "b n d"], key: Any = None
    ) -> Float[Array, "b m d"]:
        """Appends the prompts to the tokens of every image.

        Declares `prompts` in the module that is being called.

        Args:
          module: the module that owns them.
          x: the tokens.
          key: random key, which other layers may use too; without one, nothing is
            dropped.
        """
        b, _, d = x.shape
        tokens = module.param(NAME, _uniform(self.bound), (1, self.count, d))
        tokens = jnp.broadcast_to(tokens.astype(x.dtype), (b, self.count, d))
        if key is not None and self.dropout_rate:
            key = jax.random.fold_in(key, _STREAM)
            tokens = drop(tokens, self.dropout_rate, key)
        return jnp.concatenate([x, tokens], axis=1)


NO_PROMPTS = Prompts()


def initial_bound(width: int, patch_size: tuple[int, int], channels: int) -> float:
    """Returns the largest initial value of a prompt, √(6 / (inputs + outputs)).

    The inputs and outputs are those of the patch embedding, as in the published code
    (KMnP/vpt, vit_prompt/vit.py): values are uniform between minus and plus this one.

    Args:
      width: width of the tokens.
      patch_size: (height, width) in pixels.
      channels: channels of the image.
    """
    return math.sqrt(6 / (channels * math.prod(patch_size) + width))


def blocks_wanted(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the intermediates that blocks must compute for the `wanted` ones."""
    return (*wanted, "attention") if ATTENTION in wanted else wanted


def without_prompts(found: dict[str, Array], tokens: int) -> dict[str, Array]:
    """Cuts the intermediates of blocks down to the image's tokens.

    Args:
      found: intermediates of blocks: "attention" [b, depth, heads, n, m], the others
        [b, depth, n, d] or [b, depth, m, d]; prompts follow the image's tokens.
      tokens: number of the image's tokens.

    Returns:
      All for the image's tokens alone. Where there is attention, also the weights by
      which these read the prompts, as `ATTENTION` [b, depth, heads, tokens, prompts].
    """
    found = dict(found)
    for name in found.keys() - {"attention"}:
        found[name] = found[name][:, :, :tokens]
    if "attention" in found:
        weights = found["attention"][:, :, :, :tokens]
        found |= {
            "attention": weights[..., :tokens],
            ATTENTION: weights[..., tokens:],
        }
    return found


def _uniform(bound: float) -> Any:
    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
