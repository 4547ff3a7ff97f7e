"""What a Vision Transformer and an MLP-Mixer share: blocks between patches and head."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.models.architecture import ViTOrMixer
from vit_jax.models.dropout import stochastic_depth_rates
from vit_jax.models.layers import ATTENDED, patch_embedding_on, zeros
from vit_jax.models.placement import Placement

_policies = jax.checkpoint_policies


def _cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Its backward pass needs all that the forward pass gives, which has no name.

    JAX's primitive may be called otherwise one day: then it runs twice.
    """
    return primitive.name.startswith("dot_product_attention_fwd")


_products = _policies.save_from_both_policies(
    _policies.save_from_both_policies(_policies.dots_saveable, _cudnn_attention),
    _policies.save_only_these_names(ATTENDED),
)
# What the backward pass finds of a block; the rest it computes once more. None keeps
# parameters that were gathered: that they are spread would be for nothing.
REMAT = {
    # Only where parameters are gathered; otherwise the compiler decides. Keeping what
    # lies between products as well takes twice the memory (docs/parallelism.md).
    "none": _products,
    # The same; and `Attention` leaves out what lies between its projections.
    "attention": _products,
    # The products with parameters, which are most of the arithmetic.
    "dots": _policies.dots_with_no_batch_dims_saveable,
    "full": _policies.nothing_saveable,
    # The same as "dots", in the host's memory until they are needed.
    "offload": _policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


class PatchModel(nn.Module):
    """Images to logits; fields after the architecture leave the function as it is.

    Attributes:
      architecture: the function.
      dtype: of activations. Parameters, statistics of norms, softmax and logits are
        float32 whatever it is.
      scan: run the blocks as one compiled loop, over parameters stacked in the step.
      remat: what the backward pass recomputes, which saves memory; a name of `REMAT`.
      dropout_rate: in training only.
      stochastic_depth: probability that an example skips a branch of the last block,
        rising linearly from 0 in the first (arXiv:1603.09382); in training only.
      head_bias: initial bias of the head.
      placement: where arrays lie, if there are several devices.
    """

    architecture: ViTOrMixer
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"
    dropout_rate: float = 0.0
    stochastic_depth: float = 0.0
    head_bias: float = 0.0
    placement: Placement = Placement()

    def __call__(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        *,
        train: bool = False,
        intermediates: tuple[str, ...] = (),
    ) -> Float[Array, "b k"] | tuple[Float[Array, "b k"], dict[str, Array]]:
        """Float32 logits of a batch of images.

        Args:
          images: of the architecture's size, in the model's value range.
          train: apply dropout and stochastic depth; a rate above zero then needs
            `rngs={"dropout": key}`.
          intermediates: names of arrays to return besides, in the model's dtype:
            "embedding", the tokens that enter the first block, [b, n, d];
            "tokens", the tokens after each block, [b, depth, n, d];
            "attention", the weights in float32, [b, depth, heads, n, n], of a Vision
            Transformer only;
            "normed", the tokens after a final norm that precedes pooling, [b, n, d];
            "pooled", the vector that pooling gives, [b, d];
            "pre_logits", what the head reads, [b, d or pre_logits].
            Tokens are in the order class token, distillation token, registers, patches
            row by row. Where two heads read a token each, "pooled" and "pre_logits" are
            the mean of what they read.

        Returns:
          The logits, or what the head would read where there are no classes; with
          `intermediates` also a dictionary of what was asked for.

        Raises:
          ValueError: images of another shape or not floating point, or a name or a
            field with a value that is not one of the choices.
        """
        raise NotImplementedError

    def _check(self, images, wanted: tuple[str, ...], choices: Sequence[str]):
        a = self.architecture
        expected = (*a.image_size, a.channels)
        if images.shape[1:] != expected or images.ndim != 4:
            raise ValueError(
                f"images have shape {images.shape}, expected (batch, height, width, "
                f"channels) with {expected} after the batch"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}, expected floating point in the model's "
                "value range: normalise them first"
            )
        if self.remat not in REMAT:
            raise ValueError(f"remat is {self.remat!r}, expected {', '.join(REMAT)}")
        if unknown := [name for name in wanted if name not in choices]:
            raise ValueError(
                f"no intermediates {', '.join(map(repr, unknown))} in this "
                f"architecture, choose from {', '.join(choices)}"
            )

    def _keys(self, train: bool) -> Any:
        """A key for each block and one for the embedding; None where nothing drops."""
        # Split here, a key a block, so that any way of running the blocks draws alike.
        count = self.architecture.depth + 1
        if train and (self.dropout_rate or self.stochastic_depth):
            return jax.random.split(self.make_rng("dropout"), count)
        return [None] * count

    def _patch_embed(self, x: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        """Each patch times one matrix (arXiv:2010.11929, eq. 1)."""
        a = self.architecture
        return patch_embedding_on(self.placement)(
            a.width,
            kernel_size=a.embed_kernel,
            strides=a.embed_kernel,
            padding="VALID",
            dtype=self.dtype,
            name="patch_embed",
        )(x)

    def _encode(
        self,
        block: nn.Module,
        x: Float[Array, "b n d"],
        example: Float[Array, "1 m d"],
        keys: Any,
        wanted: tuple[str, ...],
        read: int | None = None,
    ) -> tuple[Float[Array, "b r d"], dict[str, Array]]:
        """The blocks in turn, and what each gave of `wanted`, stacked.

        Args:
          block: called with tokens, key, skip rate, and `wanted`; returns tokens and a
            dictionary.
          x: the tokens.
          example: the fewest tokens that show a block the shapes of its parameters.
          keys: one a block.
          wanted: names of what to return.
          read: how many tokens are read of the last block, which then computes only
            these, and gives nothing that is wanted; by default all.
        """
        # A block is a function of a subtree, so loop and scan can share the tree.
        run: Any = block.apply
        init = jax.jit(lambda key: block.init(key, example)["params"])
        depth = self.architecture.depth
        params = [self.param(f"blocks_{i:02d}", init) for i in range(depth)]
        if self.is_initializing():
            return x, {}  # what follows has no parameters of its own
        rates: Any = [None] * depth
        if self.stochastic_depth:
            rates = stochastic_depth_rates(self.stochastic_depth, depth)

        def step(x, inputs, **how):
            params, key, rate = inputs
            params = self.placement.gather(params, self.dtype)
            x, given = run({"params": params}, x, key, rate, wanted, **how)
            x = self.placement.constrain(x, "batch", None, None)
            given = {"tokens": x} | given
            return x, {name: given[name] for name in given if name in wanted}

        def sparing(step, **how):
            if self.placement.gathers or self.remat not in ("none", "attention"):
                return jax.checkpoint(step, policy=REMAT[self.remat], **how)
            return step

        x = self.placement.constrain(x, "batch", None, None)
        inputs = list(zip(params, keys, rates, strict=True))
        last = [] if read is None else [inputs.pop()]
        if self.scan and inputs:
            # Inside a scan nothing can undo the recomputation, elsewhere XLA would.
            x, given = jax.lax.scan(sparing(step, prevent_cse=False), x, _stack(inputs))
        else:
            given = []
            for block_inputs in inputs:
                x, of_block = sparing(step)(x, block_inputs)
                given.append(of_block)
            given = _stack(given)
        for block_inputs in last:
            x, _ = sparing(partial(step, read=read))(x, block_inputs)
        return x, {name: jnp.moveaxis(value, 0, 1) for name, value in given.items()}

    def _head(self, x: Float[Array, "b d"], name: str = "head") -> Float[Array, "b k"]:
        """Logits, or the vector itself without classes, in float32."""
        x = x.astype(jnp.float32)
        classes = self.architecture.num_classes
        bias_init = nn.initializers.constant(self.head_bias)
        dense = partial(nn.Dense, kernel_init=zeros, bias_init=bias_init, name=name)
        return dense(classes)(x) if classes else x


def _stack(trees):
    if not trees:
        return {}
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
