"""Masked autoencoding (MAE, arXiv:2111.06377): pixels of patches that are not seen."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vit_jax.checkpoints.description import Description
from vit_jax.errors import Problems, UserError
from vit_jax.models.architecture import Architecture
from vit_jax.models.decoder import (
    DECODER,
    Decoder,
    DecoderFacts,
    build_decoder,
    make_masking,
    num_kept,
    unfit_mask_ratio,
)
from vit_jax.models.encoder import REMAT
from vit_jax.models.pixels import masked_mean, normalized_patches, patch_values
from vit_jax.objectives.classification import init_model
from vit_jax.objectives.initialisation import of_pytorch, redrawn
from vit_jax.objectives.inputs import normalised
from vit_jax.objectives.pretrained_decoder import continued_decoder
from vit_jax.objectives.protocol import (
    Batch,
    Context,
    Given,
    Images,
    Objective,
    Params,
    Sums,
)
from vit_jax.sharding import PlacedModel


class MaskedAutoencoding(Objective):
    """An objective: reconstruct the masked patches from a few visible ones.

    The loss is the mean squared error of the masked patches' values, in the model's
    value range or, with `normalize_pixels`, normalised within each patch.
    """

    reads_schedule = False
    reads = ()
    sharding_rules = (
        (r"decoder/(embed|pred)/kernel", ("fsdp", "tensor")),
        (r"decoder/(embed|pred)/bias", ("tensor",)),
        (r"decoder/mask_token", (None, None, None)),
    )

    def __init__(
        self,
        given: Given,
        mask_ratio: float = 0.75,
        normalize_pixels: bool = True,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_remat: str = "none",
    ):
        """Makes the objective.

        Args:
          given: the run.
          mask_ratio: share of the patches that the encoder does not see;
            int(n · (1 − mask_ratio)) of n patches are visible.
          normalize_pixels: predict each patch's values less their mean, over their
            standard deviation.
          decoder_width: width of the decoder's tokens.
          decoder_depth: number of its blocks.
          decoder_heads: number of its attention heads.
          decoder_remat: what its backward pass recomputes, as `model.remat`.

        Raises:
          UserError: the model has no patches to mask, or an option is impossible.
        """
        if decoder_remat not in REMAT:
            raise UserError(
                f"objective_options.decoder_remat={decoder_remat!r}: choose from "
                f"{', '.join(REMAT)}"
            )
        self._given, self._normalizes = given, normalize_pixels
        encoder = _checked(given.architecture, mask_ratio)
        patches = encoder.grid[0] * encoder.grid[1]
        self._kept = num_kept(patches, mask_ratio)
        try:
            self._facts = DecoderFacts(
                width=decoder_width,
                depth=decoder_depth,
                mlp_dim=4 * decoder_width,
                num_heads=decoder_heads,
                normalize_pixels=normalize_pixels,
            )
            self.decoder: Decoder = build_decoder(
                encoder,
                self._facts,
                dtype=given.model.dtype,
                scan=given.model.scan,
                remat=decoder_remat,
                attention=given.model.attention,
            )
        except ValueError as error:
            raise UserError(f"objective_options.decoder_*: {error}") from error
        self._decode = PlacedModel(self.decoder, given.mesh)
        self.inputs = {"image": Images(given.train_chain, encoder.channels)}

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws the encoder's and the decoder's parameters at random."""
        encoder_key, decoder_key, key = jax.random.split(key, 3)
        encoder = self._given.architecture
        height, width = encoder.grid
        tokens = jnp.zeros((1, encoder.num_prefix_tokens + 1, encoder.width))
        restore = jnp.zeros((1, height * width), jnp.int32)
        decoder = self.decoder.init(decoder_key, tokens, restore)["params"]
        params = init_model(self._given, encoder_key) | {DECODER: decoder}
        return drawn_as_published(params, key)

    def decoder_facts(self) -> DecoderFacts:
        """Describes the decoder, from which a saved model reconstructs images."""
        return self._facts

    def adopt(self, params: Params, description: Description) -> Params:
        """Continues the decoder of pretrained weights; without one, it starts anew.

        Raises:
          UserError: it has other sizes, positions or patches, or another target.
        """
        encoder = self._given.architecture
        assert isinstance(encoder, Architecture)
        return continued_decoder(params, description, encoder, self._facts)

    def prepare(
        self, key: Key[Array, ""], batch: Batch, choice: Any
    ) -> tuple[Batch, Key[Array, ""]]:
        """Draws the noise that decides which patches are masked."""
        # For the whole batch: microbatches must not change which these are.
        key, noise_key = jax.random.split(key)
        height, width = self._given.architecture.grid
        shape = (len(batch["mask"]), height * width)
        return {**batch, "noise": jax.random.uniform(noise_key, shape)}, key

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], context: Context
    ) -> tuple[Sums, Any]:
        """Sums the mean squared error of each image's masked patches."""
        given, mask = self._given, batch["mask"]
        images = normalised(batch["image"], given.preprocessing)
        masking = make_masking(batch["noise"], self._kept)
        tokens = given.placed_model(
            params,
            images,
            kept=masking.kept,
            train=True,
            key=key,
            method="encode_visible",
        )
        found = self._decode(params[DECODER], tokens, restore=masking.restore)
        targets = patch_values(images, given.architecture.patch_size)
        if self._normalizes:
            targets = normalized_patches(targets)
        losses = masked_mean(jnp.mean((found - targets) ** 2, -1), masking.masked)
        return {"loss": (jnp.sum(losses * mask), jnp.sum(mask))}, ()


def drawn_as_published(params: Params, key: Key[Array, ""]) -> Params:
    """Draws parameters anew as the published code does.

    All kernels are Xavier-uniform; there, query, key and value are one matrix, which
    makes theirs smaller, and patches are multiplied by a matrix. Biases are 0 but for
    that of the patches, which is PyTorch's. Norms and fixed positions stay.
    """

    def draw(name: str, x: Array, key: Array) -> Array:
        if name.endswith("/kernel"):
            outputs = x.shape[-1]
            inputs = math.prod(x.shape[:-1])
            joined = 3 if re.search(r"/(query|key|value)/", name) else 1
            limit = math.sqrt(6 / (inputs + joined * outputs))
            return jax.random.uniform(key, x.shape, x.dtype, -limit, limit)
        if name == "patch_embed/bias":
            return of_pytorch(x, params["patch_embed"]["kernel"], key)
        if name.endswith("/bias"):
            return jnp.zeros_like(x)
        if name in ("cls", f"{DECODER}/mask_token"):
            return 0.02 * jax.random.normal(key, x.shape, x.dtype)
        return x

    return redrawn(params, key, draw)


def _checked(architecture: Any, mask_ratio: float) -> Architecture:
    if not isinstance(architecture, Architecture):
        raise UserError(
            "masked autoencoding needs a Vision Transformer, which can leave out "
            f"patches; found {type(architecture).__name__.removesuffix('Architecture')}"
        )
    problems = []
    patches = architecture.grid[0] * architecture.grid[1]
    if problem := unfit_mask_ratio(patches, mask_ratio):
        problems.append(f"objective_options.{problem}")
    if architecture.trunk is not None:
        problems.append(
            "masked autoencoding of a hybrid would see through the ResNet what is "
            "masked; use a variant without R50"
        )
    if architecture.norm != "before_pool":
        problems.append(
            "the decoder reads tokens after a norm, but this model has its norm after "
            "pooling; start from other weights"
        )
    if problems:
        raise Problems(*problems)
    return architecture
