"""The decoder of masked autoencoders (arXiv:2111.06377): visible tokens in, pixels out.

The encoder sees only the visible patches. The decoder, narrower and shallower, gets its
tokens, puts one learned mask token wherever a patch is missing, adds fixed positions,
and predicts the pixels of every patch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.architecture import Architecture
from vit_jax.models.blocks import NORMS, Block
from vit_jax.models.encoder import run_blocks
from vit_jax.models.layers import make_layers, normal, xavier_uniform
from vit_jax.models.patch_model import PatchModel
from vit_jax.models.positions import sincos2d

DECODER = "decoder"  # the subtree of its parameters, beside the encoder's


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


def unfit_mask_ratio(patches: int, mask_ratio: float) -> str:
    """Returns what is wrong with a mask ratio for so many patches, or ""."""
    if 0 < mask_ratio < 1 and 0 < num_kept(patches, mask_ratio) < patches:
        return ""
    problem = f"mask_ratio={mask_ratio}: of {patches} patches, at least one has to be "
    problem += "visible and one masked; "
    if patches == 1:
        return f"{problem}use smaller patches or larger images"
    # Tried out, because of 10 patches a ratio of 0.9 leaves int(0.9999999999999998).
    most = max(n / 1000 for n in range(1, 1000) if num_kept(patches, n / 1000))
    return f"{problem}give a number above 0, at most {most}"


@dataclasses.dataclass(frozen=True)
class DecoderFacts:
    """The description of a decoder beside its encoder's architecture.

    Patches, channels, GELU and the norms' epsilon are the encoder's.

    Attributes:
      width: width of its tokens.
      depth: number of its blocks.
      mlp_dim: hidden width of their MLPs.
      num_heads: number of their attention heads.
      normalize_pixels: whether it predicts pixels normalised within each patch, rather
        than in the encoder's value range; None = not recorded.
      posemb: "sincos2d" for MAE's fixed positions, "learned" for others, which are
        parameters.
      qkv_bias: whether queries, keys and values have biases.

    Raises:
      ValueError: one message that lists every field with an impossible value.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    normalize_pixels: bool | None = None
    posemb: str = "sincos2d"
    qkv_bias: bool = True

    def __post_init__(self):
        if type(self.normalize_pixels) not in (bool, type(None)):
            raise ValueError(
                f"normalize_pixels is {self.normalize_pixels!r}, expected True, False "
                "or None"
            )
        # Patches are the encoder's; the other fields are checked here already.
        self._architecture((1, 1), (1, 1), 1)

    def architecture(self, encoder: Architecture) -> Architecture:
        """Makes the architecture of the decoder for the patches of an encoder.

        The outputs are the values of a patch.
        """
        architecture = self._architecture(
            encoder.patch_size, encoder.image_size, encoder.channels
        )
        return dataclasses.replace(
            architecture,
            gelu=encoder.gelu,
            layernorm_epsilon=encoder.layernorm_epsilon,
        )

    def _architecture(
        self, patch_size: tuple[int, int], image_size: tuple[int, int], channels: int
    ) -> Architecture:
        return Architecture(
            width=self.width,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
            num_heads=self.num_heads,
            patch_size=patch_size,
            image_size=image_size,
            num_classes=patch_size[0] * patch_size[1] * channels,
            channels=channels,
            pooling="gap",
            class_token=False,
            class_token_position=False,
            posemb=self.posemb,
            sincos_denominator="mae",
            qkv_bias=self.qkv_bias,
        )

    def to_dict(self) -> dict[str, Any]:
        """Converts the fields to JSON values, which `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "DecoderFacts":
        """Reads the result of `to_dict`.

        Raises:
          ValueError: a field is unknown or missing, or a value is impossible.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := sorted(names ^ fields.keys()):
            raise ValueError(f"not a decoder: {', '.join(wrong)} missing or unknown")
        return cls(**fields)


def build_decoder(encoder: Architecture, facts: DecoderFacts, **how: Any) -> "Decoder":
    """Builds the module of a decoder; `how` are other fields of it."""
    prefix = encoder.num_prefix_tokens
    return Decoder(facts.architecture(encoder), prefix=prefix, **how)


def abstract_decoder(encoder: Architecture, facts: DecoderFacts) -> dict[str, Any]:
    """Returns the shapes and dtypes of a decoder's parameters; allocates none."""
    if facts.posemb != "learned":
        # Fixed positions are not parameters; computing them for a huge grid is avoided.
        encoder = dataclasses.replace(encoder, image_size=encoder.patch_size)
    decoder = build_decoder(encoder, dataclasses.replace(facts, depth=1))
    tokens = jnp.zeros((1, encoder.num_prefix_tokens + 1, encoder.width))
    restore = jnp.zeros((1, encoder.grid[0] * encoder.grid[1]), jnp.int32)
    params = jax.eval_shape(
        lambda: decoder.init(jax.random.key(0), tokens, restore)["params"]
    )
    # All blocks are alike, so tracing one is enough.
    block = params.pop("blocks_00")
    return params | {f"blocks_{i:02d}": block for i in range(facts.depth)}


def fixed_positions(
    grid: tuple[int, int], width: int, prefix: int
) -> Float[np.ndarray, "1 n d"]:
    """Computes MAE's fixed positions: 0 for `prefix` tokens, then the grid's rows."""
    positions = sincos2d(grid, width, "mae").reshape(1, -1, width)
    return np.pad(positions, ((0, 0), (prefix, 0), (0, 0)))


class Decoder(PatchModel):
    """A transformer from the tokens of visible patches to the pixels of all patches.

    Attributes:
      architecture: from `DecoderFacts.architecture`.
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
        x = x + jnp.asarray(self._positions(grid or a.grid), self.dtype)
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
    def _positions(self, grid: tuple[int, int]) -> Float[Any, "1 n d"]:
        """Returns the positions of the tokens before the patches and of a grid."""
        a = self.architecture
        if a.posemb != "learned":
            # Tokens before the patches have no position.
            return fixed_positions(grid, a.width, self.prefix)
        shapes = {"pos_embed": (1, *a.grid, a.width)}
        if self.prefix:
            shapes = {"pos_embed_prefix": (1, self.prefix, a.width)} | shapes
        parts = [
            self.param(name, normal(0.02), shape) for name, shape in shapes.items()
        ]
        return jnp.concatenate([x.reshape(1, -1, a.width) for x in parts], axis=1)

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
