"""The encoder: a model's blocks, run as a loop or a scan, with optional recomputation.

A block is not a Linen submodule but a function of its subtree: `block.apply` on the
value of `model.param("blocks_00", …)`. Submodules under `nn.scan` would have stacked
parameters, those of a loop would not; here both share one tree, and so do all
checkpoints. The price: `capture_intermediates` and `nn.tabulate` see no blocks. Ask the
model for `intermediates=("tokens", "attention")` instead.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.blocks import ATTENDED
from vit_jax.models.dropout import DEPTH_FORMS
from vit_jax.models.layers import Layers
from vit_jax.models.patch_model import PatchModel
from vit_jax.models.taps import OF_BLOCKS, Taps

_policies = jax.checkpoint_policies


def _cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether this is cuDNN's attention, whose whole result its backward pass needs.

    The result cannot be named. If JAX renames the primitive, attention will run twice.
    """
    return primitive.name.startswith("dot_product_attention_fwd")


_products = _policies.save_from_both_policies(
    _policies.save_from_both_policies(_policies.dots_saveable, _cudnn_attention),
    _policies.save_only_these_names(ATTENDED),
)
# The results of a block that are kept for the backward pass; it recomputes the others.
# No policy keeps gathered parameters: that would defeat sharding them.
REMAT = {
    # Applies only where parameters are gathered; otherwise the compiler decides. Also
    # keeping the results between products takes twice the memory (docs/parallelism.md).
    "none": _products,
    # In addition, `Attention` recomputes everything between its projections.
    "attention": _products,
    # The products with parameters, which are most of the arithmetic.
    "dots": _policies.dots_with_no_batch_dims_saveable,
    "full": _policies.nothing_saveable,
    # The products of "dots", in the host's memory until they are needed.
    "offload": _policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def run_blocks(
    model: PatchModel,
    block: nn.Module,
    layers: Layers,
    x: Float[Array, "b n d"],
    example: Float[Array, "1 m d"],
    keys: tuple[Any, ...] = (),
    wanted: tuple[str, ...] = (),
    read: int | None = None,
    rng: str = "",
    tapped: tuple[int, ...] | None = None,
    added: Mapping[str, Array] | None = None,
) -> tuple[Float[Array, "b r d"], dict[str, Array]]:
    """Runs the blocks of a model one after the other.

    Args:
      model: holds the parameters, and the fields that say how to run the blocks.
      block: called with tokens, key, skip rate, and `Taps`; returns tokens.
      layers: the block's layers.
      x: the tokens.
      example: the fewest tokens from which a block can infer its parameters' shapes.
      keys: one for each block, more are ignored; without any, nothing is dropped.
      wanted: names of the intermediates to return.
      read: number of tokens of the last block that are read. The last block then
        computes only these, and none of the intermediates; by default all.
      rng: name of a stream of random numbers that the block's layers draw from; it
        starts from the block's key.
      tapped: indices of the blocks whose intermediates are `wanted`, in ascending
        order; such a model is not scanned. None: all.
      added: what is added to intermediates of these blocks, by name, [b, tapped, …];
        see `Taps`.

    Returns:
      The tokens after the last block, and the `wanted` intermediates of each block that
      is tapped, stacked: [b, tapped, …].

    Raises:
      ValueError: a field or an argument is not one of the choices.
    """
    if model.remat not in REMAT:
        raise ValueError(f"remat is {model.remat!r}, expected {', '.join(REMAT)}")
    run: Any = block.apply
    init = jax.jit(lambda key: block.init(key, example)["params"])
    depth, placement = model.architecture.depth, layers.placement
    params = [model.param(f"blocks_{i:02d}", init) for i in range(depth)]
    if model.is_initializing():
        return x, {}  # the rest creates no parameters
    keys = keys[:depth] or (None,) * depth
    names, additions = _by_block(depth, wanted, tapped, added or {})
    rates: Any = [None] * depth
    if model.stochastic_depth:
        rates = DEPTH_FORMS[model.stochastic_depth_form](model.stochastic_depth, depth)

    def step(x, inputs, wanted=wanted, **how):
        params, key, rate, added = inputs
        taps = Taps(wanted, added)
        params = placement.gather(params, layers.dtype)
        if rng and key is not None:
            how["rngs"] = {rng: key}
        x = run({"params": params}, x, key, rate, taps, **how)
        x = taps("tokens", placement.constrain(x, "batch", None, None))
        return x, taps.found

    def sparing(step, **how):
        if placement.gathers or model.remat not in ("none", "attention"):
            return jax.checkpoint(step, policy=REMAT[model.remat], **how)
        return step

    x = placement.constrain(x, "batch", None, None)
    inputs = list(zip(params, keys, rates, additions, strict=True))
    last = [] if read is None else [inputs.pop()]
    given: Any = []
    if model.scan and inputs and tapped is None:
        for part in (inputs[: model.scan_apart], inputs[model.scan_apart :]):
            if part:
                # Outside a scan XLA's CSE would undo the recomputation; inside it
                # cannot.
                loop = sparing(step, prevent_cse=False)
                x, of_part = jax.lax.scan(loop, x, _stack(part))
                given.append(of_part)
        given = _concatenate(given)
    else:
        for block_inputs, of_block in zip(inputs, names, strict=False):
            x, found = sparing(partial(step, wanted=of_block))(x, block_inputs)
            given += [found] if found else []
        given = _stack(given)
    for block_inputs in last:
        x, _ = sparing(partial(step, read=read))(x, block_inputs)
    return x, {name: jnp.moveaxis(value, 0, 1) for name, value in given.items()}


def _by_block(
    depth: int,
    wanted: tuple[str, ...],
    tapped: tuple[int, ...] | None,
    added: Mapping[str, Array],
) -> tuple[list[tuple[str, ...]], list[dict[str, Array]]]:
    """Returns what is wanted of each block, and what is added to its intermediates."""
    chosen = range(depth) if tapped is None else tapped
    if list(chosen) != sorted({i for i in chosen if 0 <= i < depth}):
        raise ValueError(f"layers {tapped}, expected ascending ones below {depth}")
    names: list[tuple[str, ...]] = [()] * depth
    additions: list[dict[str, Array]] = [{} for _ in range(depth)]
    for row, layer in enumerate(chosen):
        names[layer] = tuple(name for name in wanted if name in OF_BLOCKS)
        additions[layer] = {name: array[:, row] for name, array in added.items()}
    return names, additions


def _concatenate(trees):
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def _stack(trees):
    if not trees:
        return {}
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
