"""Masked patch prediction (ViT paper, arXiv:2010.11929, appendix B.1.2).

Some patch embeddings are corrupted, most of them by a learned [mask] embedding, and the
encoder, which sees all tokens, predicts the colours of those patches.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from vit_jax.errors import Problems, UserError
from vit_jax.models.architecture import Architecture
from vit_jax.objectives.classification import init_model
from vit_jax.objectives.inputs import normalised
from vit_jax.objectives.protocol import (
    Batch,
    Context,
    Given,
    Images,
    Objective,
    Params,
    Sums,
)
from vit_jax.words import did_you_mean

SUBTREE = "masked_patches"  # its parameters, beside the encoder's
TARGETS = ("colors", "pixels")
QUANTIZATIONS = ("floor", "round")
SOURCES = ("image", "batch")
_MOST_OUTPUTS = 2**16


class MaskedPatches(Objective):
    """An objective: predict the colours of corrupted patches, whose place is known.

    The loss is that of the corrupted patches alone: cross-entropy of the colours, or
    the mean squared error of the pixels. For colours, `accuracy` is the share of them
    that is predicted rightly.
    """

    reads_schedule = False
    reads = ()
    sharding_rules = (
        (rf"{SUBTREE}/head/kernel", ("fsdp", "tensor")),
        (rf"{SUBTREE}/head/bias", ("tensor",)),
        (rf"{SUBTREE}/mask_token", (None, None, None)),
    )

    def __init__(
        self,
        given: Given,
        corrupted: float = 0.5,
        masked: float = 0.8,
        swapped: float = 0.1,
        target: str = "colors",
        bits: int = 3,
        cells: int = 1,
        quantization: str = "floor",
        swap_from: str = "image",
    ):
        """Makes the objective.

        The paper leaves open what `quantization` and `swap_from` decide, and whether
        every image has the same number of corrupted patches.

        Args:
          given: the run.
          corrupted: share of the patches of each image that are corrupted and
            predicted; their number is rounded, and at least 1.
          masked: share of these that are replaced by the [mask] embedding.
          swapped: share of these that are replaced by another patch; the rest stays.
          target: "colors", or "pixels": the values of the whole patch, in the model's
            value range.
          bits: colours: bits of each channel; 3 are 512 colours.
          cells: colours: a patch has cells × cells mean colours; 1 is the published
            target, 4 the paper's "4 × 4 downsized" alternative.
          quantization: colours: "floor", ⌊mean · 2^bits / 256⌋ of the 8-bit mean, or
            "round", the nearest of 2^bits values from black to white.
          swap_from: a swapped patch becomes another patch of the same "image", or any
            patch of the previous image of the "batch".

        Raises:
          UserError: the model cannot leave out patches, or an option is impossible.
        """
        self._given = given
        self._target, self._quantization = target, quantization
        self._bits, self._cells, self._source = bits, cells, swap_from
        self._architecture = _checked(
            given.architecture,
            {"corrupted": corrupted, "masked": masked, "swapped": swapped},
            {"target": target, "quantization": quantization, "swap_from": swap_from},
            {"bits": bits, "cells": cells},
        )
        self._masked, self._changed = masked, masked + swapped
        patches = math.prod(self._architecture.grid)
        self.count = max(round(corrupted * patches), 1)
        self.inputs = {"image": Images(given.train_chain, self._architecture.channels)}

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws the encoder's parameters at random; the head of the colours is 0."""
        encoder_key, key = jax.random.split(key)
        a = self._architecture
        outputs = num_outputs(a, self._target, self._bits, self._cells)
        own = {
            "mask_token": 0.02 * jax.random.normal(key, (1, 1, a.width)),
            "head": {
                "kernel": jnp.zeros((a.width, outputs)),
                "bias": jnp.zeros(outputs),
            },
        }
        return init_model(self._given, encoder_key) | {SUBTREE: own}

    def prepare(
        self, key: Key[Array, ""], batch: Batch, choice: Any
    ) -> tuple[Batch, Key[Array, ""]]:
        """Draws which patches are corrupted and how; swaps patches."""
        # For the whole batch: microbatches must not change any of this.
        key, order_key, kind_key, source_key = jax.random.split(key, 4)
        shape = (len(batch["mask"]), math.prod(self._architecture.grid))
        order = jnp.argsort(jax.random.uniform(order_key, shape), axis=1)
        corrupted = jnp.argsort(order, axis=1) < self.count
        kind = jax.random.uniform(kind_key, shape)
        swapped = corrupted & (self._masked <= kind) & (kind < self._changed)
        images = batch["image"]
        colors = self._target == "colors"
        return {
            **batch,
            # An embedding is a function of its patch alone, so patches are swapped.
            "image": self._swap(images, swapped, source_key),
            "target": self._colors(images) if colors else images,
            "corrupted": order[:, : self.count],
            "masked": corrupted & (kind < self._masked),
        }, key

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], context: Context
    ) -> tuple[Sums, Any]:
        """Sums the mean loss of each image's corrupted patches."""
        given, mask, own = self._given, batch["mask"], params[SUBTREE]
        tokens = given.placed_model(
            params,
            normalised(batch["image"], given.preprocessing),
            masked=batch["masked"],
            token=own["mask_token"],
            train=True,
            key=key,
            method="encode_masked",
        )
        corrupted = batch["corrupted"]
        tokens = tokens[:, self._architecture.num_prefix_tokens :]
        found = _at(tokens, corrupted) @ own["head"]["kernel"].astype(tokens.dtype)
        found = found.astype(jnp.float32) + own["head"]["bias"][None, None]
        if self._target == "pixels":
            targets = self._pixels(batch["target"])
            losses = jnp.mean((found - _at(targets, corrupted)) ** 2, axis=(1, 2))
            return {"loss": (jnp.sum(losses * mask), jnp.sum(mask))}, ()
        colors = _at(batch["target"], corrupted)
        found = found.reshape(*colors.shape, -1)
        log_p = jax.nn.log_softmax(found)
        losses = -jnp.take_along_axis(log_p, colors[..., None], axis=-1)
        right = jnp.argmax(found, axis=-1) == colors
        weight = jnp.sum(mask)
        return {
            "loss": (jnp.sum(jnp.mean(losses, axis=(1, 2, 3)) * mask), weight),
            "accuracy": (jnp.sum(jnp.mean(right, axis=(1, 2)) * mask), weight),
        }, ()

    def _swap(
        self,
        images: Shaped[Array, "b h w c"],
        swapped: Bool[Array, "b n"],
        key: Key[Array, ""],
    ) -> Shaped[Array, "b h w c"]:
        """Replaces patches by others."""
        patches = cut(images, self._architecture.patch_size)
        b, n = swapped.shape
        if self._source == "image":
            step = jax.random.randint(key, (b, n), 1, max(n, 2))
            others = _at(patches, (jnp.arange(n)[None] + step) % n)
        else:
            others = _at(
                jnp.roll(patches, 1, axis=0), jax.random.randint(key, (b, n), 0, n)
            )
        patches = jnp.where(swapped[..., None, None, None], others, patches)
        return joined(patches, self._architecture.grid)

    def _pixels(self, images: Shaped[Array, "b h w c"]) -> Float[Array, "b n v"]:
        values = normalised(images, self._given.preprocessing)
        patches = cut(values, self._architecture.patch_size)
        return patches.reshape(*patches.shape[:2], -1)

    def _colors(self, images: Shaped[Array, "b h w c"]) -> Int[Array, "b n s"]:
        size = self._architecture.patch_size
        return color_codes(
            cut(images, size),
            bits=self._bits,
            cells=self._cells,
            quantization=self._quantization,
        )


def cut(
    images: Shaped[Array, "b h w c"], patch_size: tuple[int, int]
) -> Shaped[Array, "b n p q c"]:
    """Cuts images into patches of p × q pixels, row by row."""
    b, height, width, c = images.shape
    p, q = patch_size
    x = images.reshape(b, height // p, p, width // q, q, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p, q, c)


def joined(
    patches: Shaped[Array, "b n p q c"], grid: tuple[int, int]
) -> Shaped[Array, "b h w c"]:
    """Puts a (height, width) grid of patches together, the inverse of `cut`."""
    b, _, p, q, c = patches.shape
    x = patches.reshape(b, *grid, p, q, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, grid[0] * p, grid[1] * q, c)


def color_codes(
    patches: Shaped[Array, "b n p q c"],
    *,
    bits: int = 3,
    cells: int = 1,
    quantization: str = "floor",
) -> Int[Array, "b n s"]:
    """Quantises the mean colours of patches.

    Args:
      patches: pixels, 0 … 255.
      bits: bits per channel.
      cells: mean colours along each side of a patch.
      quantization: see `MaskedPatches`.

    Returns:
      int32 codes of the s = cells² colours, row by row: the channels' numbers of
      `bits` bits one after the other, the first channel foremost.
    """
    b, n, p, q, c = patches.shape
    x = patches.reshape(b, n, cells, p // cells, cells, q // cells, c)
    # Sums of whole numbers are the same on every device.
    total = jnp.sum(x, axis=(3, 5), dtype=jnp.int32).reshape(b, n, cells**2, c)
    pixels = (p // cells) * (q // cells)
    if quantization == "floor":
        levels = total // (pixels * 2 ** (8 - bits))
    else:
        levels = jnp.round(total / (255 * pixels) * (2**bits - 1)).astype(jnp.int32)
    code = levels[..., 0]
    for channel in range(1, c):
        code = code * 2**bits + levels[..., channel]
    return code


def num_outputs(architecture: Architecture, target: str, bits: int, cells: int) -> int:
    """Returns the number of values that are predicted for a patch."""
    if target == "pixels":
        return math.prod(architecture.patch_size) * architecture.channels
    return cells**2 * 2 ** (bits * architecture.channels)


def _at(values: Shaped[Array, "b n ..."], index: Int[Array, "b k"]) -> Array:
    """Picks the values of k patches of each image."""
    index = index.reshape(*index.shape, *(1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def _checked(
    architecture: Any,
    shares: dict[str, float],
    choices: dict[str, str],
    sizes: dict[str, int],
) -> Architecture:
    """Rejects models and options that do not work; lists all problems."""
    if not isinstance(architecture, Architecture):
        raise UserError(
            "masked patch prediction needs a Vision Transformer, which has a token for "
            "each patch; found "
            f"{type(architecture).__name__.removesuffix('Architecture')}"
        )
    problems = []
    if architecture.trunk is not None:
        problems.append(
            "masked patch prediction with a hybrid would see through the ResNet what "
            "is masked; use a variant without R50"
        )
    if architecture.norm != "before_pool":
        problems.append(
            "masked patch prediction reads tokens after a norm, but this model has its "
            "norm after pooling; start from other weights"
        )
    for name, share in shares.items():
        if not 0 <= share <= 1:
            problems.append(
                f"objective_options.{name}={share!r}: expected a share from 0 to 1"
            )
    if not problems:
        problems += _wrong_shares(architecture, **shares)
    for name, valid in (
        ("target", TARGETS),
        ("quantization", QUANTIZATIONS),
        ("swap_from", SOURCES),
    ):
        if choices[name] not in valid:
            problems.append(
                f"objective_options.{name}={choices[name]!r}: choose from "
                f"{', '.join(valid)}{did_you_mean(str(choices[name]), valid)}"
            )
    problems += _wrong_sizes(architecture, choices, **sizes)
    if problems:
        raise Problems(*problems)
    return architecture


def _wrong_shares(
    architecture: Architecture, corrupted: float, masked: float, swapped: float
) -> list[str]:
    found = []
    if not corrupted:
        found.append(
            "objective_options.corrupted=0.0: nothing would be predicted; the paper "
            "corrupts 0.5 of the patches"
        )
    if masked + swapped > 1 + 1e-9:
        found.append(
            f"objective_options.masked={masked} and swapped={swapped} are shares of "
            "the corrupted patches: their sum must be at most 1"
        )
    if math.prod(architecture.grid) < 2:
        found.append(
            "the image is a single patch, which could only be predicted from itself; "
            "use a larger image_size or a smaller patch"
        )
    return found


def _wrong_sizes(
    architecture: Architecture, choices: dict[str, str], bits: int, cells: int
) -> list[str]:
    if choices["target"] == "pixels":
        given: dict[str, Any] = {"bits": (bits, 3), "cells": (cells, 1)}
        given["quantization"] = choices["quantization"], "floor"
        return [
            f"objective_options.{name}={value!r} has no effect with target='pixels'; "
            "leave it out"
            for name, (value, default) in given.items()
            if value != default
        ]
    if not 1 <= bits <= 8:
        return [f"objective_options.bits={bits!r}: expected a whole number from 1 to 8"]
    sides = architecture.patch_size
    if cells < 1 or any(side % cells for side in sides):
        return [
            f"objective_options.cells={cells!r}: must divide the sides of a patch, "
            f"{sides[0]} × {sides[1]} pixels"
        ]
    outputs = num_outputs(architecture, "colors", bits, cells)
    if outputs > _MOST_OUTPUTS:
        return [
            f"objective_options.bits={bits}, cells={cells}: with "
            f"{architecture.channels} channels, a patch would have {outputs:,} "
            f"outputs; give values for which {_MOST_OUTPUTS:,} or fewer are needed"
        ]
    return []
