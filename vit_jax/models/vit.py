"""The Vision Transformer (arXiv:2010.11929): images in, logits out.

Patches become tokens, tokens pass through encoder blocks, and heads read pooled
vectors. `Architecture` defines the function; the module's other fields define how to
compute and train it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.architecture import Architecture
from vit_jax.models.blocks import NORMS, Block
from vit_jax.models.dropout import drop
from vit_jax.models.encoder import run_blocks
from vit_jax.models.flexible import PatchSize, at_patch_size
from vit_jax.models.heads import MAP_ATTENTION, MapHead, apply_head
from vit_jax.models.layers import Layers, make_layers, normal, zeros
from vit_jax.models.lora import RNG
from vit_jax.models.patch_model import (
    PatchModel,
    check_images,
    check_intermediates,
    embed_patches,
)
from vit_jax.models.positions import resize, sincos2d
from vit_jax.models.prompts import (
    ATTENTION,
    NO_PROMPTS,
    Prompts,
    blocks_wanted,
    initial_bound,
    without_prompts,
)
from vit_jax.models.resnet import Trunk
from vit_jax.models.taps import OF_BLOCKS, Taps

INTERMEDIATES = ("embedding", *OF_BLOCKS, "normed", "pooled", "pre_logits")
HEADS = ("head", "head_distillation")


class VisionTransformer(PatchModel):
    """A Vision Transformer from images to logits, called as a whole or in parts.

    Dropout is applied after the positions, after attention and after both layers of the
    MLP (appendix B.1). `remat` "full" also recomputes the units of a trunk.
    `PatchModel` explains the other fields.

    Attributes:
      attention: a row of `attention.formulations.IMPLEMENTATIONS`.
      layer_scale_init: initial value of LayerScale (arXiv:2103.17239).
      lora_dropout: dropout rate of the input of LoRA adapters; in training only.
      posemb_resize: accept images of every size that can be cut into patches, and
        resize learned positions for them with this method, a row of
        `positions.METHODS`. Sin-cos positions are computed for their grid. None: images
        must have the architecture's size.
      prompt_dropout: dropout rate of the prompts, in training only.
    """

    architecture: Architecture
    attention: str = "auto"
    layer_scale_init: float = 1e-4
    lora_dropout: float = 0.0
    posemb_resize: str | None = None
    prompt_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        *,
        train: bool = False,
        intermediates: tuple[str, ...] = (),
        layers: tuple[int, ...] | None = None,
        added: Mapping[str, Array] | None = None,
        patch_size: PatchSize | None = None,
    ) -> Float[Array, "b k"] | tuple[Float[Array, "b k"], dict[str, Array]]:
        """Computes float32 logits of a batch of images; two heads are averaged.

        Args:
          images: images of the architecture's size, in the model's value range.
          train: apply dropout and stochastic depth; a rate above zero then needs
            `rngs={"dropout": key}`.
          intermediates: names of arrays to return as well, in the model's dtype:
            "embedding", the tokens that enter the first block, [b, n, d];
            "norm1", the tokens that attention reads in each block, [b, depth, n, d];
            "queries", "keys", "values", their projections, each head's channels
            adjacent, [b, depth, n, d];
            "attention", the weights in float32, [b, depth, heads, n, n];
            "tokens", the tokens after each block, [b, depth, n, d];
            "prompt_attention", with prompts, the rest of each row of weights, by which
            a token reads the prompts, [b, depth, heads, n, prompts];
            "normed", the tokens after a final norm that precedes pooling, [b, n, d];
            "map_attention", with pooling "map", the weights by which the head reads
            the patches, in float32, [b, heads, n];
            "pooled", the result of pooling, [b, d], or [b, 2d] with pooling "cls_gap";
            "pre_logits", the input of the head, [b, d, 2d or pre_logits];
            "head" and "head_distillation", the logits of each head in float32, [b, k].
            Tokens are in the order class token, distillation token, registers, patches
            row by row; prompts are not among them. If two heads read a token each,
            "pooled" and "pre_logits" are the means over both.
          layers: indices of the blocks whose arrays are returned or added to, in
            ascending order: instead of `depth` arrays, as many as there are indices.
            None: all blocks.
          added: what is added to some of these arrays of blocks, or to
            "map_attention", by name: zeros to differentiate with respect to.
          patch_size: side or (height, width) of the patches in pixels, other than the
            architecture's; see `flexible.at_patch_size`.

        Returns:
          The logits, or the head's input if there are no classes; with `intermediates`
          also a dictionary of the arrays asked for.

        Raises:
          ValueError: the images have another shape or are not floating point, a name or
            a field is not one of the choices, or the patch size is impossible.
        """
        self._check_images(images, patch_size)
        check_intermediates(intermediates, self._choices())
        added = dict(added or {})
        check_intermediates(tuple(added), (*OF_BLOCKS, MAP_ATTENTION))
        keys = self.dropout_keys(train)
        found: dict[str, Array] = {}
        of_head = {n: added.pop(n) for n in (MAP_ATTENTION,) if n in added}

        x = found["embedding"] = self.embed(images, keys, patch_size)
        read = self._read((*intermediates, *added))
        x = self.encode(
            *(x, keys),
            wanted=intermediates,
            read=read,
            found=found,
            layers=layers,
            added=added,
        )
        vectors = self.pool(x, found, Taps(intermediates, of_head))
        logits = self.head(vectors)
        found |= dict(zip(HEADS, logits, strict=False))
        x = _mean(logits)
        if not intermediates:
            return x
        return x, {name: found[name] for name in intermediates}

    @nn.compact
    def patches(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        patch_size: PatchSize | None = None,
    ) -> Float[Array, "b gh gw d"]:
        """Embeds patches and adds positions, before other tokens join them (3.1).

        Masked pretraining drops some of them here; `add_prefix` takes the rest.

        Args:
          images: images as in `__call__`.
          patch_size: see `__call__`.
        """
        return self._positioned(self._embedded(images, patch_size), patch_size)

    @nn.compact
    def add_prefix(self, patches: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
        """Prepends class token, distillation token and registers to patches."""
        a, (b, _, d) = self.architecture, patches.shape
        if not a.num_prefix_tokens:
            return patches
        prefix = self._prefix().astype(self.dtype)
        prefix = jnp.broadcast_to(prefix, (b, a.num_prefix_tokens, d))
        return jnp.concatenate([prefix, patches], axis=1)

    @nn.compact
    def embed(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        keys: tuple[Any, ...] = (),
        patch_size: PatchSize | None = None,
    ) -> Float[Array, "b n d"]:
        """Embeds images as the tokens that enter the first block.

        Args:
          images: images as in `__call__`.
          keys: from `dropout_keys`; without any, nothing is dropped.
          patch_size: see `__call__`.
        """
        x = self.patches(images, patch_size)
        b, gh, gw, d = x.shape
        x = self.add_prefix(x.reshape(b, gh * gw, d))
        return drop(x, self.dropout_rate, keys[-1] if keys else None)

    @nn.compact
    def encode(
        self,
        tokens: Float[Array, "b n d"],
        keys: tuple[Any, ...] = (),
        *,
        wanted: tuple[str, ...] = (),
        read: int | None = None,
        found: dict[str, Array] | None = None,
        layers: tuple[int, ...] | None = None,
        added: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b r d"]:
        """Computes the tokens after the last block, before the final norm.

        Args:
          tokens: any number of tokens; prompts join them here, and are not returned.
          keys: from `dropout_keys`; without any, nothing is dropped.
          wanted: which intermediates of blocks to put into `found`.
          read: compute only this number of tokens, the first ones, in the last block;
            then `wanted` must be empty. By default all.
          found: receives the intermediates by name.
          layers: see `__call__`.
          added: see `__call__`.
        """
        a, record = self.architecture, self.architecture.block
        how = make_layers(self.dtype, self.placement, record.lora, self.lora_dropout)
        prompts, n = self._prompts, tokens.shape[1]
        if a.prompts and not a.prompts_deep:
            tokens = prompts.join(self, tokens, keys[-1] if keys else None)
            # The last block computes none that nothing reads.
            read = n if read is None and not wanted else read
        block = Block(
            record,
            how,
            attention=self.attention,
            dropout_rate=self.dropout_rate,
            layer_scale_init=self.layer_scale_init,
            remat_attention=self.remat == "attention",
            prompts=prompts if a.prompts_deep else NO_PROMPTS,
            parent=None,
        )
        one_token = jnp.zeros((1, 1, a.width), self.dtype)
        rng = RNG if self.lora_dropout else ""
        x, of_blocks = run_blocks(
            *(self, block, how, tokens, one_token, keys),
            *(blocks_wanted(wanted), read, rng, layers, added),
        )
        if a.prompts:
            x, of_blocks = x[:, :n], without_prompts(of_blocks, n)
        if found is not None:
            found |= of_blocks
        return x

    @nn.compact
    def encode_visible(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        kept: Int[Array, "b k"],
        *,
        train: bool = False,
    ) -> Float[Array, "b m d"]:
        """Computes the tokens of some patches after the final norm, as if alone.

        This is the encoder of masked autoencoders (arXiv:2111.06377): the cost is that
        of the patches it sees.

        Args:
          images: images as in `__call__`.
          kept: the patches of each image to encode, counted row by row, in any order.
          train: see `__call__`.

        Returns:
          The tokens before the patches, and then the k patches in their order.
        """
        keys = self.dropout_keys(train)
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.take_along_axis(x, kept[..., None], axis=1)
        x = drop(self.add_prefix(x), self.dropout_rate, keys[-1])
        return self._final_norm()(self.encode(x, keys))

    @nn.compact
    def encode_masked(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        masked: Bool[Array, "b n"],
        token: Float[Array, "1 1 d"],
        *,
        train: bool = False,
    ) -> Float[Array, "b m d"]:
        """Computes all tokens after the final norm, with some embeddings replaced.

        This is the encoder of masked patch prediction (appendix B.1.2), where a patch
        is replaced before positions are added, so that its place is known.

        Args:
          images: images as in `__call__`.
          masked: the patches, row by row, whose embeddings are replaced.
          token: the embedding that replaces them.
          train: see `__call__`.

        Returns:
          The tokens before the patches, and then those of the n patches.
        """
        keys = self.dropout_keys(train)
        x = self._embedded(images)
        b, gh, gw, d = x.shape
        replaced = masked.reshape(b, gh, gw, 1)
        x = jnp.where(replaced, token[None].astype(self.dtype), x)
        x = self._positioned(x).reshape(b, gh * gw, d)
        x = drop(self.add_prefix(x), self.dropout_rate, keys[-1])
        return self._final_norm()(self.encode(x, keys))

    @nn.compact
    def pool(
        self,
        tokens: Float[Array, "b n d"],
        found: dict[str, Array] | None = None,
        taps: Taps | None = None,
    ) -> list[Float[Array, "b r"]]:
        """Pools the tokens into the inputs of the heads, one vector for each head.

        Args:
          tokens: the result of `encode`.
          found: receives "normed", "pooled" and "pre_logits", and what the taps found.
          taps: may be on "map_attention".
        """
        a = self.architecture
        found = {} if found is None else found
        taps = taps or Taps()
        norm = self._final_norm()
        if a.norm == "before_pool":
            tokens = norm(tokens)
            found["normed"] = tokens
        vectors = self._pooled(tokens, taps)
        found |= taps.found
        found["pooled"] = _mean(vectors)
        if a.norm == "after_pool":
            vectors = [norm(x) for x in vectors]
        if a.pre_logits:
            dense = nn.Dense(a.pre_logits, dtype=self.dtype, name="pre_logits")
            vectors = [nn.tanh(dense(x)) for x in vectors]
        found["pre_logits"] = _mean(vectors)
        return vectors

    @nn.compact
    def head(self, vectors: Sequence[Float[Array, "b r"]]) -> list[Float[Array, "b k"]]:
        """Computes float32 logits of each head, in the order of `HEADS`.

        Without classes, these are the vectors themselves.

        Args:
          vectors: the result of `pool`, one for each head.
        """
        classes = self.architecture.num_classes
        heads = HEADS[: self.architecture.num_pooled]
        return [
            apply_head(x, classes, self.head_bias, self.head_std, name)
            for x, name in zip(vectors, heads, strict=True)
        ]

    @property
    def drops(self) -> bool:
        """Whether anything is dropped in training."""
        prompts = self.architecture.prompts and self.prompt_dropout
        return bool(prompts or self.lora_dropout) or super().drops

    @property
    def _prompts(self) -> Prompts:
        a = self.architecture
        bound = initial_bound(a.width, a.patch_size, a.channels)
        return Prompts(a.prompts, bound, self.prompt_dropout)

    @property
    def _layers(self) -> Layers:
        return make_layers(self.dtype, self.placement)

    @nn.compact
    def _final_norm(self) -> nn.Module:
        # Outside the blocks, the layers are Flax's own on every device.
        norm = self.architecture.block.norm
        return NORMS[norm.type](norm, make_layers(self.dtype), name="norm")

    def _choices(self) -> list[str]:
        """Lists the names of the intermediates that this architecture has."""
        a = self.architecture
        names = [n for n in INTERMEDIATES if n != "normed" or a.norm == "before_pool"]
        prompted = [ATTENTION] if a.prompts else []
        prompted += [MAP_ATTENTION] if a.pooling == "map" else []
        return [*names, *prompted, *HEADS[: a.num_pooled]]

    def _read(self, intermediates: tuple[str, ...]) -> int | None:
        """Returns how many tokens of the last block must be computed; None: all."""
        all_wanted = {*OF_BLOCKS, ATTENTION, "normed"} & set(intermediates)
        a = self.architecture
        return a.num_pooled if a.pooling == "cls" and not all_wanted else None

    def _at(self, patch_size: PatchSize | None) -> Architecture:
        """Returns the architecture at another patch size; None: as it is."""
        if patch_size is None:
            return self.architecture
        return at_patch_size(self.architecture, patch_size, self.posemb_resize)

    def _check_images(
        self, images: Array | np.ndarray, patch_size: PatchSize | None
    ) -> None:
        any_size = self.posemb_resize is not None
        check_images(images, self._at(patch_size), any_size)

    @nn.compact
    def _embedded(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        patch_size: PatchSize | None = None,
    ) -> Float[Array, "b gh gw d"]:
        """Embeds patches, without their positions."""
        a = self._at(patch_size)
        self._check_images(images, patch_size)
        x = jnp.asarray(images, self.dtype)
        if a.trunk is not None:
            remat = self.remat == "full"
            x = Trunk(a.trunk, a.trunk_numerics, self.dtype, remat, name="trunk")(x)
        return embed_patches(x, a, self._layers)

    @nn.compact
    def _positioned(
        self, x: Float[Array, "b gh gw d"], patch_size: PatchSize | None = None
    ) -> Float[Array, "b gh gw d"]:
        """Adds the positions to embedded patches."""
        positions = self._positions(x.shape[1:3], self._at(patch_size))
        return x + jnp.asarray(positions, self.dtype)

    @nn.compact
    def _positions(
        self, grid: tuple[int, ...], a: Architecture
    ) -> Float[Any, "1 gh gw d"]:
        """Returns the positions of a (height, width) grid of patches."""
        height, width = grid
        if a.posemb != "learned":
            return sincos2d((height, width), a.width, a.sincos_denominator)
        shape = (1, *a.position_grid, a.width)
        positions = self.param("pos_embed", normal(0.02), shape)
        method = a.flexible_resize or self.posemb_resize
        if method is None:
            return positions
        return resize(positions, (height, width), method)

    @nn.compact
    def _prefix(self) -> Float[Array, "1 p d"]:
        """Makes class token, distillation token and registers, and adds positions."""
        a, d = self.architecture, self.architecture.width
        # All but the class token are random, like positions: equal tokens would get
        # equal gradients forever.
        inits = {
            "registers": (a.registers, normal(0.02)),
            "cls": (int(a.class_token), zeros),
            "distillation": (int(a.distillation_token), normal(0.02)),
        }
        tokens = {
            name: self.param(name, init, (1, count, d))
            for name, (count, init) in inits.items()
            if count
        }
        order = ("cls", "distillation", "registers")
        prefix = jnp.concatenate([tokens[n] for n in order if n in tokens], axis=1)
        if not a.num_position_prefix:
            return prefix
        shape = (1, a.num_position_prefix, d)
        positions = self.param("pos_embed_prefix", normal(0.02), shape)
        special = a.num_prefix_tokens - a.registers
        before = 0 if a.class_token_position else special
        after = 0 if a.register_positions else a.registers
        return prefix + jnp.pad(positions, ((0, 0), (before, after), (0, 0)))

    @nn.compact
    def _pooled(
        self, x: Float[Array, "b n d"], taps: Taps
    ) -> list[Float[Array, "b r"]]:
        """Pools a vector per head: special tokens, one made of the patches, or both."""
        a = self.architecture
        if a.pooling == "cls":
            return [x[:, i] for i in range(a.num_pooled)]
        patches = x[:, a.num_prefix_tokens :]
        if a.pooling == "gap":
            return [patches.mean(axis=1)]
        if a.pooling == "cls_gap":
            return [jnp.concatenate([x[:, 0], patches.mean(axis=1)], axis=-1)]
        head = MapHead(a.block, self._layers, self.attention, name="map_head")
        return [head(patches, taps)]


def _mean(arrays: list[Array]) -> Array:
    return sum(arrays[1:], arrays[0]) / len(arrays)
