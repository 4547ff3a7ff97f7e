"""The MLP-Mixer (arXiv:2105.01601): MLPs across the patches and across the channels."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vit_jax.models.architecture import MixerArchitecture
from vit_jax.models.blocks import Mlp, MlpArchitecture
from vit_jax.models.dropout import drop
from vit_jax.models.encoder import run_blocks
from vit_jax.models.heads import apply_head
from vit_jax.models.layers import FLOAT32, Layers, lecun_normal, make_layers, zeros
from vit_jax.models.patch_model import (
    PatchModel,
    check_images,
    check_intermediates,
    embed_patches,
)
from vit_jax.models.taps import Taps

INTERMEDIATES = ("embedding", "tokens", "normed", "pooled", "pre_logits")
HEADS = ("head",)


class MlpMixer(PatchModel):
    """An MLP-Mixer from images to logits; `PatchModel` explains the fields.

    Dropout is applied after both layers of the MLPs. There is no attention to return,
    and the number of patches must be the architecture's.
    """

    architecture: MixerArchitecture

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        *,
        train: bool = False,
        intermediates: tuple[str, ...] = (),
        layers: tuple[int, ...] | None = None,
        added: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b k"] | tuple[Float[Array, "b k"], dict[str, Array]]:
        """Computes float32 logits of a batch of images.

        Args:
          images: images of the architecture's size, in the model's value range.
          train: apply dropout and stochastic depth; a rate above zero then needs
            `rngs={"dropout": key}`.
          intermediates: names of arrays to return as well, in the model's dtype:
            "embedding", the tokens that enter the first block, [b, n, d];
            "tokens", the tokens after each block, [b, depth, n, d];
            "normed", the tokens after the final norm, [b, n, d];
            "pooled" and "pre_logits", their mean, [b, d];
            "head", the logits. Tokens are the patches row by row.
          layers: indices of the blocks whose arrays are returned or added to, in
            ascending order; None: all, [depth].
          added: "tokens", what is added to the tokens after each of these blocks,
            [b, layers, n, d]: zeros to differentiate with respect to.

        Returns:
          The logits, or the head's input if there are no classes; with `intermediates`
          also a dictionary of the arrays asked for.

        Raises:
          ValueError: the images have another shape or are not floating point, or a name
            or a field is not one of the choices.
        """
        check_images(images, self.architecture)
        check_intermediates(intermediates, (*INTERMEDIATES, *HEADS))
        check_intermediates(tuple(added or ()), ("tokens",))
        keys = self.dropout_keys(train)
        found: dict[str, Array] = {}

        x = found["embedding"] = self.embed(images, keys)
        x = self.encode(
            *(x, keys), wanted=intermediates, found=found, layers=layers, added=added
        )
        vectors = self.pool(x, found)
        [x] = self.head(vectors)
        found["head"] = x
        if not intermediates:
            return x
        return x, {name: found[name] for name in intermediates}

    @nn.compact
    def patches(
        self, images: Float[Array | np.ndarray, "b h w c"]
    ) -> Float[Array, "b gh gw d"]:
        """Embeds each patch as a vector; a Mixer has no positions to add."""
        check_images(images, self.architecture)
        x = jnp.asarray(images, self.dtype)
        return embed_patches(x, self.architecture, self._layers)

    @nn.compact
    def embed(
        self, images: Float[Array | np.ndarray, "b h w c"], keys: tuple[Any, ...] = ()
    ) -> Float[Array, "b n d"]:
        """Embeds images as tokens for the first block; `keys` are not used."""
        del keys
        a = self.architecture
        x = self.patches(images)
        return x.reshape(len(x), a.num_tokens, a.width)

    @nn.compact
    def encode(
        self,
        tokens: Float[Array, "b n d"],
        keys: tuple[Any, ...] = (),
        *,
        wanted: tuple[str, ...] = (),
        found: dict[str, Array] | None = None,
        layers: tuple[int, ...] | None = None,
        added: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b n d"]:
        """Computes the tokens after the last block, before the final norm.

        Args:
          tokens: one for each patch.
          keys: from `dropout_keys`; without any, nothing is dropped.
          wanted: "tokens", to put the tokens after each block into `found`.
          found: receives the intermediates by name.
          layers: see `__call__`.
          added: see `__call__`.
        """
        record, how = self.architecture, self._layers
        block = MixerBlock(record, how, self.dropout_rate, parent=None)
        # A whole example: the number of tokens is a dimension of the parameters.
        x, of_blocks = run_blocks(
            *(self, block, how, tokens, tokens[:1], keys, wanted),
            tapped=layers,
            added=added,
        )
        if found is not None:
            found |= of_blocks
        return x

    @nn.compact
    def pool(
        self, tokens: Float[Array, "b n d"], found: dict[str, Array] | None = None
    ) -> list[Float[Array, "b d"]]:
        """Pools the tokens into the head's input, the mean of the normed tokens.

        Args:
          tokens: the result of `encode`.
          found: receives "normed", "pooled" and "pre_logits".
        """
        # Outside the blocks, the layers are Flax's own on every device.
        layers = make_layers(self.dtype)
        norm = layers.layer_norm(
            epsilon=self.architecture.layernorm_epsilon, name="norm"
        )
        found = {} if found is None else found
        tokens = found["normed"] = norm(tokens)
        x = found["pooled"] = found["pre_logits"] = tokens.mean(axis=1)
        return [x]

    @nn.compact
    def head(self, vectors: Sequence[Float[Array, "b d"]]) -> list[Float[Array, "b k"]]:
        """Computes float32 logits; without classes, returns the vector itself.

        Args:
          vectors: the result of `pool`.
        """
        classes = self.architecture.num_classes
        return [
            apply_head(x, classes, self.head_bias, self.head_std, name)
            for x, name in zip(vectors, HEADS, strict=True)
        ]

    @property
    def _layers(self) -> Layers:
        return make_layers(self.dtype, self.placement)


class MixerBlock(nn.Module):
    """An MLP across the tokens, then one across the channels, both residual (eq. 1)."""

    architecture: MixerArchitecture
    layers: Layers = FLOAT32
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        key: Key[Array, ""] | None = None,
        skip_rate: Float[Array | np.ndarray, ""] | np.float32 | None = None,
        taps: Taps | None = None,  # noqa: ARG002, there are only those of the encoder
    ) -> Float[Array, "b n d"]:
        """Computes the new tokens; without a key, nothing is dropped."""
        a = self.architecture
        norm = partial(self.layers.layer_norm, epsilon=a.layernorm_epsilon)

        def mlp(hidden, name):
            return Mlp(
                MlpArchitecture(hidden, a.gelu),
                self.layers,
                self.dropout_rate,
                kernel_init=lecun_normal,
                bias_init=zeros,
                name=name,
            )

        keys: Any = [None] * 4 if key is None else jax.random.split(key, 4)

        y = norm(name="norm1")(x).swapaxes(1, 2)
        y = mlp(a.tokens_mlp_dim, "tokens_mlp")(y, keys[0]).swapaxes(1, 2)
        x = x + drop(y, skip_rate, keys[1], whole_examples=True)

        y = norm(name="norm2")(x)
        y = mlp(a.mlp_dim, "mlp")(y, keys[2])
        return x + drop(y, skip_rate, keys[3], whole_examples=True)
