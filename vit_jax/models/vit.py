"""The Vision Transformer (arXiv:2010.11929): images in, logits out.

Patches become tokens, tokens pass through encoder blocks, and a head reads one pooled
vector. `Architecture` says which function that is; the module's own fields say how to
compute and how to train it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vit_jax.models.architecture import Architecture
from vit_jax.models.dropout import drop
from vit_jax.models.layers import (
    Attention,
    Mlp,
    layer_norm_on,
    normal,
    xavier_uniform,
    zeros,
)
from vit_jax.models.patch_model import PatchModel
from vit_jax.models.placement import Placement
from vit_jax.models.positions import sincos2d
from vit_jax.models.resnet import Trunk

INTERMEDIATES = ("embedding", "tokens", "attention", "normed", "pooled", "pre_logits")


class VisionTransformer(PatchModel):
    """Images to logits; `PatchModel` explains the call and the other fields.

    Dropout is after the positions, after attention and after both layers of the MLP
    (appendix B.1). `remat` recomputes the units of a trunk too.

    Attributes:
      attention: a formulation of `attention.IMPLEMENTATIONS`.
      layer_scale_init: initial LayerScale (arXiv:2103.17239).
    """

    architecture: Architecture
    attention: str = "auto"
    layer_scale_init: float = 1e-4

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        *,
        train: bool = False,
        intermediates: tuple[str, ...] = (),
    ) -> Float[Array, "b k"] | tuple[Float[Array, "b k"], dict[str, Array]]:
        """See `PatchModel`."""
        a = self.architecture
        choices = [n for n in INTERMEDIATES if n != "normed" or a.norm == "before_pool"]
        self._check(images, intermediates, choices)
        *keys, embed_key = self._keys(train)
        norm = nn.LayerNorm(epsilon=a.layernorm_epsilon, dtype=self.dtype, name="norm")
        # Of the last block only what the head reads is computed.
        all_wanted = {"tokens", "attention", "normed"} & set(intermediates)
        read = a.num_pooled if a.pooling == "cls" and not all_wanted else None

        x = self._embed(jnp.asarray(images, self.dtype))
        x = drop(x, self.dropout_rate, embed_key)
        found = {"embedding": x}
        block = Block(
            a,
            dtype=self.dtype,
            attention=self.attention,
            dropout_rate=self.dropout_rate,
            layer_scale_init=self.layer_scale_init,
            remat_attention=self.remat == "attention",
            placement=self.placement,
            parent=None,
        )
        one_token = jnp.zeros((1, 1, a.width), self.dtype)
        x, of_blocks = self._encode(block, x, one_token, keys, intermediates, read)
        found |= of_blocks
        if a.norm == "before_pool":
            x = norm(x)
            found["normed"] = x
        # One vector for each head.
        vectors = self._pool(x)
        found["pooled"] = _mean(vectors)
        if a.norm == "after_pool":
            vectors = [norm(x) for x in vectors]
        if a.pre_logits:
            dense = nn.Dense(a.pre_logits, dtype=self.dtype, name="pre_logits")
            vectors = [nn.tanh(dense(x)) for x in vectors]
        found["pre_logits"] = _mean(vectors)
        heads = ("head", "head_distillation")[: len(vectors)]
        x = _mean([self._head(x, n) for x, n in zip(vectors, heads, strict=True)])
        if not intermediates:
            return x
        return x, {name: found[name] for name in intermediates}

    def _embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Patches with positions, behind the other tokens (3.1)."""
        a = self.architecture
        if a.trunk is not None:
            remat = self.remat == "full"
            trunk = Trunk(a.trunk, a.trunk_numerics, self.dtype, remat, name="trunk")
            images = trunk(images)
        x = self._patch_embed(images)
        if a.posemb == "learned":
            pos_embed = self.param("pos_embed", normal(0.02), (1, *a.grid, a.width))
        else:
            pos_embed = sincos2d(a.grid, a.width, a.sincos_denominator)
        x = x + jnp.asarray(pos_embed, self.dtype)
        b, gh, gw, d = x.shape
        patches = x.reshape(b, gh * gw, d)
        if not a.num_prefix_tokens:
            return patches
        prefix = jnp.broadcast_to(
            self._prefix().astype(self.dtype), (b, a.num_prefix_tokens, d)
        )
        return jnp.concatenate([prefix, patches], axis=1)

    def _prefix(self) -> Float[Array, "1 p d"]:
        """Class token, distillation token, registers, with the positions they add."""
        a, d = self.architecture, self.architecture.width
        # All but the class token are drawn like positions: equal tokens would get equal
        # gradients forever.
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

    def _pool(self, x: Float[Array, "b n d"]) -> list[Float[Array, "b d"]]:
        """A vector for each head: special tokens, or one made of the patches alone."""
        a = self.architecture
        if a.pooling == "cls":
            return [x[:, i] for i in range(a.num_pooled)]
        patches = x[:, a.num_prefix_tokens :]
        if a.pooling == "gap":
            return [patches.mean(axis=1)]
        head = MapHead(a, self.dtype, self.attention, self.placement, name="map_head")
        return [head(patches)]


class Block(nn.Module):
    """Attention between tokens, then an MLP on each, both residual (eq. 2, 3)."""

    architecture: Architecture
    dtype: Any = jnp.float32
    attention: str = "auto"
    dropout_rate: float = 0.0
    layer_scale_init: float = 1e-4
    remat_attention: bool = False
    placement: Placement = Placement()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        key: Key[Array, ""] | None = None,
        skip_rate: Float[Array | np.ndarray, ""] | np.float32 | None = None,
        wanted: tuple[str, ...] = (),
        read: int | None = None,
    ) -> tuple[Float[Array, "b r d"], dict[str, Float[Array, "b heads r n"] | None]]:
        """The first tokens as far as they are `read`, by default all; what is `wanted`.

        Without a key nothing is dropped.
        """
        a = self.architecture
        norm = layer_norm_on(self.placement, self.dtype, a.layernorm_epsilon)
        keys: Any = [None] * 4 if key is None else jax.random.split(key, 4)

        y = norm(name="norm1")(x)
        attention = Attention(
            a.num_heads,
            self.dtype,
            self.attention,
            a.qkv_bias,
            self.remat_attention,
            self.placement,
            name="attention",
        )
        x = x[:, :read]
        y, weights = attention(y[:, :read], y, "attention" in wanted)
        y = drop(y, self.dropout_rate, keys[0])
        y = self._scale(y, "layer_scale1")
        x = x + drop(y, skip_rate, keys[1], whole_examples=True)

        y = norm(name="norm2")(x)
        mlp = Mlp(
            a.mlp_dim,
            a.gelu,
            self.dtype,
            self.dropout_rate,
            placement=self.placement,
            name="mlp",
        )
        y = mlp(y, keys[2])
        y = self._scale(y, "layer_scale2")
        x = x + drop(y, skip_rate, keys[3], whole_examples=True)
        return x, {"attention": weights}

    def _scale(self, y, name):
        if not self.architecture.layer_scale:
            return y
        init = nn.initializers.constant(self.layer_scale_init)
        scale = self.param(name, init, y.shape[-1:])
        return y * scale.astype(y.dtype).reshape(1, 1, -1)


class MapHead(nn.Module):
    """Pooling by attention: a learned probe reads the patches (arXiv:2106.04560)."""

    architecture: Architecture
    dtype: Any = jnp.float32
    attention: str = "auto"
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, patches: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        a = self.architecture
        b, _, d = patches.shape
        probe = self.param("probe", xavier_uniform, (1, 1, d)).astype(self.dtype)
        attention = Attention(
            a.num_heads,
            self.dtype,
            self.attention,
            placement=self.placement,
            name="attention",
        )
        x, _ = attention(jnp.broadcast_to(probe, (b, 1, d)), patches)
        y = nn.LayerNorm(epsilon=a.layernorm_epsilon, dtype=self.dtype, name="norm")(x)
        mlp = Mlp(a.mlp_dim, a.gelu, self.dtype, placement=self.placement, name="mlp")
        x = x + mlp(y)
        return x[:, 0]


def _mean(arrays: list[Array]) -> Array:
    return sum(arrays[1:], arrays[0]) / len(arrays)
