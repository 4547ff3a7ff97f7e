"""The decoder of masked autoencoders (arXiv:2111.06377): visible tokens in, pixels out.

The encoder sees only the visible patches. The decoder, narrower and shallower, gets its
tokens, puts one learned mask token wherever a patch is missing, adds fixed positions,
and predicts the pixels of every patch.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.architecture import Architecture
from vit_jax.models.blocks import NORMS, Block
from vit_jax.models.encoder import run_blocks
from vit_jax.models.layers import make_layers, normal, xavier_uniform
from vit_jax.models.patch_model import PatchModel
from vit_jax.models.positions import sincos2d


class Masking(NamedTuple):
    """The choice of the patches that the encoder sees, for each image.

    Attributes:
      kept: int32 [b, k], the visible patches in the order in which they are encoded.
      restore: int32 [b, n], position of each patch among first the visible and then the
        masked ones.
      masked: bool [b, n], whether a patch is masked.
    """

    kept: Int[Array, "b k"]
    restore: Int[Array, "b n"]
    masked: Bool[Array, "b n"]


def make_masking(noise: Float[Array, "b n"], kept: int) -> Masking:
    """Keeps the patches of the smallest noise, in its order (MAE's random_masking)."""
    order = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(order, axis=1)
    return Masking(order[:, :kept], restore, restore >= kept)


def num_kept(patches: int, mask_ratio: float) -> int:
    """Returns the number of visible patches, by the formula of the published code.

    It is a product of floating-point numbers: of 100 patches, a ratio of 0.9 keeps 9.
    """
    return int(patches * (1 - mask_ratio))


def decoder_architecture(
    encoder: Architecture, *, width: int, depth: int, num_heads: int
) -> Architecture:
    """Makes the architecture of a decoder for the patches of an encoder.

    Norms and GELU are the encoder's, an MLP is four times as wide as the tokens, and
    the outputs are the values of a patch.

    Raises:
      ValueError: the sizes do not fit each other.
    """
    patch_height, patch_width = encoder.patch_size
    return Architecture(
        width=width,
        depth=depth,
        mlp_dim=4 * width,
        num_heads=num_heads,
        patch_size=encoder.patch_size,
        image_size=encoder.image_size,
        num_classes=patch_height * patch_width * encoder.channels,
        channels=encoder.channels,
        pooling="gap",
        class_token=False,
        class_token_position=False,
        posemb="sincos2d",
        sincos_denominator="mae",
        gelu=encoder.gelu,
        layernorm_epsilon=encoder.layernorm_epsilon,
    )


class Decoder(PatchModel):
    """A transformer from the tokens of visible patches to the pixels of all patches.

    Attributes:
      architecture: from `decoder_architecture`.
      attention: a row of `attention.formulations.IMPLEMENTATIONS`.
      prefix: number of the encoder's tokens before the patches.
    """

    architecture: Architecture
    attention: str = "auto"
    prefix: int = 1

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b m d"],
        restore: Int[Array, "b n"],
        *,
        grid: tuple[int, int] | None = None,
    ) -> Float[Array, "b n v"]:
        """Predicts the values of every patch: row by row of it, channels last, float32.

        Args:
          tokens: the encoder's tokens after its final norm: those before the patches,
            then the k visible patches.
          restore: position of each of the n patches among first the visible and then
            the masked ones; see `Masking`.
          grid: (height, width) of the patches; by default the architecture's.
        """
        a, layers = self.architecture, make_layers(self.dtype, self.placement)
        x = layers.dense(a.width, kernel_init=xavier_uniform, name="embed")(tokens)
        x = self._with_missing(x, restore)
        positions = sincos2d(grid or a.grid, a.width, a.sincos_denominator)
        positions = positions.reshape(1, -1, a.width)
        # Tokens before the patches have no position.
        positions = np.pad(positions, ((0, 0), (self.prefix, 0), (0, 0)))
        x = x + jnp.asarray(positions, self.dtype)
        block = Block(
            a.block,
            layers,
            attention=self.attention,
            remat_attention=self.remat == "attention",
            parent=None,
        )
        one_token = jnp.zeros((1, 1, a.width), self.dtype)
        x, _ = run_blocks(self, block, layers, x, one_token)
        # Outside the blocks, the layers are Flax's own on every device.
        norm = NORMS[a.block.norm.type]
        x = norm(a.block.norm, make_layers(self.dtype), name="norm")(x)
        x = layers.dense(a.num_classes, kernel_init=xavier_uniform, name="pred")(x)
        return x[:, self.prefix :].astype(jnp.float32)

    @nn.compact
    def _with_missing(
        self, tokens: Float[Array, "b m d"], restore: Int[Array, "b n"]
    ) -> Float[Array, "b p d"]:
        """Puts the mask token wherever a patch is missing, and all in their places."""
        (b, m, d), n = tokens.shape, restore.shape[1]
        mask_token = self.param("mask_token", normal(0.02), (1, 1, d))
        missing = jnp.broadcast_to(
            mask_token.astype(self.dtype), (b, n + self.prefix - m, d)
        )
        patches = jnp.concatenate([tokens[:, self.prefix :], missing], axis=1)
        patches = jnp.take_along_axis(patches, restore[..., None], axis=1)
        return jnp.concatenate([tokens[:, : self.prefix], patches], axis=1)
