"""A model run one block at a time, forward and backward.

Programs of one block serve all blocks, so that they compile in a second and hold the
arrays of one block: where the weights of all blocks of a large image take hundreds of
megabytes, those of one take a few.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from vit_jax.inspect.targets import Outputs, value_of
from vit_jax.model import Model
from vit_jax.models import Architecture, PatchModel
from vit_jax.models.heads import MAP_ATTENTION
from vit_jax.models.prompts import NAME as PROMPTS
from vit_jax.models.prompts import without_prompts
from vit_jax.models.taps import Taps

NORMED = "normed"  # the intermediate: tokens after a final norm that precedes pooling


class OfBlock(NamedTuple):
    """An array inside a block, and the gradient of the target with respect to it."""

    layer: int
    value: Array
    gradient: Array


class OfHead(NamedTuple):
    """Gradients of the target with respect to arrays after the last block.

    Attributes:
      tokens: gradient with respect to the tokens after the last block.
      values: "normed", the tokens after a final norm that precedes pooling, and
        "map_attention", the weights of a MAP head [b, heads, m], where they exist.
      gradients: gradients with respect to these, by name.
    """

    tokens: Float[Array, "b n d"]
    values: dict[str, Array]
    gradients: dict[str, Array]


class Blockwise:
    """A model's embedding, blocks and head, each called for itself.

    Tokens are those of the image; prompts that pass through all blocks follow them.
    """

    def __init__(self, model: Model):
        """Makes the programs of a model; each compiles when it is first used."""
        # Nothing is recomputed, and one block is not a loop.
        self._module = model.module.clone(scan=False, remat="none")
        self._params, self._depth = model.params, model.architecture.depth
        a = model.architecture
        alone: Any = {"depth": 1}
        self._passing = 0  # prompts among the tokens
        if isinstance(a, Architecture) and a.prompts and not a.prompts_deep:
            self._passing = a.prompts
            alone["prompts"] = 0
        self._block = self._module.clone(architecture=dataclasses.replace(a, **alone))

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Computes the tokens that enter the first block."""
        return _embed(self._module, self._params, images, self._passing)

    def forward(
        self, tokens: Float[Array, "b n d"], names: tuple[str, ...] = ()
    ) -> Iterator[tuple[Float[Array, "b n d"], dict[str, Array]]]:
        """Yields the tokens after each block, and its intermediates.

        Args:
          tokens: the result of `embed`.
          names: the intermediates, some of `taps.OF_BLOCKS`; of the image's tokens.
        """
        x = tokens
        for layer in range(self._depth):
            x, found = _forward(
                self._block, self._of(layer), x, {}, names, self._passing
            )
            yield x, found

    def pooling(self, tokens: Float[Array, "b n d"]) -> dict[str, Array]:
        """Computes "normed" and "map_attention", as in `OfHead`, where they exist.

        Args:
          tokens: the tokens after the last block.
        """
        return _pooling(self._module, self._params, tokens, self._passing)

    def head(self, tokens: Float[Array, "b n d"], target: Partial) -> OfHead:
        """Differentiates a target with respect to the tokens after the last block.

        Raises:
          UserError: the target is not a number for each image.
        """
        return _head(self._module, self._params, tokens, target, self._passing)

    def backward(
        self,
        inputs: list[Float[Array, "b n d"]],
        gradient: Float[Array, "b n d"],
        name: str,
        start: int = 0,
    ) -> Iterator[OfBlock]:
        """Yields an intermediate of each block and its gradient, from the last block.

        Args:
          inputs: the tokens that enter the blocks.
          gradient: gradient of the target with respect to the tokens after the last.
          name: the intermediate, one of `taps.OF_BLOCKS`; of the image's tokens.
          start: index of the last block to yield, the first in the model's order.
        """
        for layer in reversed(range(start, self._depth)):
            value, of_value, gradient = _backward(
                *(self._block, self._of(layer), inputs[layer], gradient),
                *(name, self._passing),
            )
            yield OfBlock(layer, value, of_value)

    def _of(self, layer: int) -> Any:
        """Returns the parameters of a block, as those of a model of one block."""
        return {"params": {"blocks_00": self._params[f"blocks_{layer:02d}"]}}


@partial(jax.jit, static_argnums=(0, 3))
def _embed(module: PatchModel, params, images, passing: int):
    x = jnp.asarray(module.apply({"params": params}, images, method="embed"))
    if not passing:
        return x
    prompts = params[PROMPTS].astype(x.dtype)
    prompts = jnp.broadcast_to(prompts, (len(x), *prompts.shape[1:]))
    return jnp.concatenate([x, prompts], axis=1)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _forward(block: PatchModel, variables, x, added, names, passing: int):
    found: dict[str, Array] = {}
    n = x.shape[1] - passing
    x = block.apply(
        *(variables, x), wanted=names, found=found, added=added, method="encode"
    )
    found = without_prompts(found, n) if passing else found
    return x, {name: found[name][:, 0] for name in names}


@partial(jax.jit, static_argnums=(0, 4, 5))
def _backward(block: PatchModel, variables, x, gradient, name: str, passing: int):
    run = partial(_forward, block, variables, names=(name,), passing=passing)
    value = jax.eval_shape(run, x, added={})[1][name]
    zeros = jnp.zeros((len(value), 1, *value.shape[1:]), value.dtype)
    _, back, found = jax.vjp(
        lambda x, zeros: run(x, added={name: zeros}), x, zeros, has_aux=True
    )
    of_tokens, of_value = back(gradient)
    return found[name], of_value[:, 0], of_tokens


@partial(jax.jit, static_argnums=(0, 3))
def _pooling(module: PatchModel, params, tokens, passing: int) -> dict[str, Array]:
    found = _pool(module, params, tokens, {}, passing)[1]
    return {name: found[name] for name in (NORMED, MAP_ATTENTION) if name in found}


@partial(jax.jit, static_argnums=(0, 4))
def _head(module: PatchModel, params, tokens, target: Partial, passing: int) -> OfHead:
    def total(tokens, added):
        vectors, found = _pool(module, params, tokens, added, passing)
        logits: Any = module.apply({"params": params}, vectors, method="head")
        logits = sum(logits[1:], logits[0]) / len(logits)
        outputs = Outputs(logits, found["pooled"], found["pre_logits"])
        return value_of(target, outputs).sum(), {name: found[name] for name in added}

    shapes = jax.eval_shape(lambda: _pooling(module, params, tokens, passing))
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    (of_tokens, gradients), values = jax.grad(total, argnums=(0, 1), has_aux=True)(
        tokens, zeros
    )
    return OfHead(of_tokens, values, gradients)


def _pool(module: PatchModel, params, tokens, added, passing: int):
    """Pools the image's tokens; returns vectors, and what was found on the way."""
    a = module.architecture
    maps = isinstance(a, Architecture) and a.pooling == "map"
    of_maps = {name: added[name] for name in (MAP_ATTENTION,) if name in added}
    taps = [Taps([MAP_ATTENTION], of_maps)] if maps else []
    found: dict[str, Array] = {}

    def add(run, args, kwargs, context):
        result = run(*args, **kwargs)
        # The final norm has no taps of its own.
        return result + added[NORMED] if context.module.path == ("norm",) else result

    tokens = tokens[:, : tokens.shape[1] - passing]
    with nn.intercept_methods(add) if NORMED in added else contextlib.nullcontext():
        vectors: Any = module.apply(
            {"params": params}, tokens, found, *taps, method="pool"
        )
    return vectors, found
