"""What notebooks import: `load` a model, use it, `save` it."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vit_jax.checkpoints.description import Description
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, PatchModel, ViTOrMixer, build
from vit_jax.models.attention.formulations import FASTEST_ON_CPU, why_not_cudnn
from vit_jax.models.positions import METHODS
from vit_jax.versions import warn_of_untested
from vit_jax.weights import adapt as adapting
from vit_jax.weights.loading import load_weights
from vit_jax.weights.saving import save_weights
from vit_jax.words import pair, times

Path = str | pathlib.Path
# Images that go through the model at once in `Model.predict`.
_BATCH = 32


class Features(NamedTuple):
    """What `Model.features` returns; layers in the order they were asked for."""

    patches: Float[Array, "b layers gh gw d"]  # tokens as the grid they lie on
    prefix: Float[Array, "b layers p d"]  # class token, then registers
    pooled: Float[Array, "b d"]  # what pooling gives at the end of the model


def load(
    source: Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    patch_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    pre_logits: bool = True,
    posemb_resize: str | None = None,
    num_heads: int | None = None,
    trained_image_size: int | tuple[int, int] | None = None,
    fold_normalization: bool = False,
    dtype: Any = None,
    ema: bool = True,
) -> "Model":
    """Loads a model from wherever it is; what was changed on the way is logged.

    Args:
      source: a work directory (its newest checkpoint) or WORKDIR/checkpoints/STEP; a
        file of ours, Google's, big_vision's, timm's or Hugging Face's, or a directory
        with one; a published name, see `python -m vit_jax.models`; "hf:owner/name"; an
        https address.
      image_size: another one, in pixels, or (height, width). Learned positions are
        resized and the preprocessing gives images of this size.
      num_classes: another number of classes gets a new zero head without class names; 0
        removes the head.
      patch_size: another one, in pixels, or (height, width); the patch embedding is
        resized (arXiv:2212.08013), and the positions where the grid changes.
      channels: of the images, if not as before; the first layer is averaged or tiled.
      pre_logits: False drops the tanh layer before the head, if there is one, and the
        head that read it.
      posemb_resize: method for learned positions, one of
        `vit_jax.models.positions.METHODS`; by default the one of the model's config,
        or of the family's own code.
      num_heads: for a file that does not say it.
      trained_image_size: that the positions in a file belong to, where neither the file
        nor a config beside it says so and the grid is not square.
      fold_normalization: put the mean and standard deviation of the input into the
        patch embedding, so that the model reads [−1, 1].
      dtype: of activations; by default as in training: what its config says, where
        "auto" is bfloat16 on TPU and GPU and float32 on the CPU.
      ema: the averaged weights of a work directory that has any (`ema_decay`); False
        takes those of the last update.

    Raises:
      UserError: there is no such model, or one of the values cannot be.
    """
    warn_of_untested()
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"source={source!r}: expected a path, a name or an address")
    sizes = {
        "image_size": image_size,
        "patch_size": patch_size,
        "trained_image_size": trained_image_size,
    }
    size, patch, trained = (_size(name, value) for name, value in sizes.items())
    dtype = None if dtype is None else _compute_dtype(dtype)
    description, params = load_weights(
        source,
        num_heads=num_heads,
        image_size=size,
        trained_image_size=trained,
        ema=ema,
    )
    original, config = description.architecture, description.config
    preprocessing = description.preprocessing
    posemb_resize = posemb_resize or config["posemb_resize"]
    if posemb_resize not in METHODS:
        raise UserError(
            f"posemb_resize={posemb_resize!r}: choose from {', '.join(METHODS)}"
        )
    if fold_normalization:
        params, preprocessing = adapting.fold_normalization(
            params, original, preprocessing
        )
    if channels is not None and channels != original.channels:
        params, preprocessing = adapting.even_normalization(
            params, original, preprocessing
        )
    changes = {
        "image_size": size,
        "num_classes": num_classes,
        "patch_size": patch,
        "channels": channels,
        "pre_logits": None if pre_logits or not _has_pre_logits(original) else 0,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        target = dataclasses.replace(original, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
    # The classes are the same ones if the caller did not name another number.
    kept = target.num_classes == original.num_classes
    class_names = description.class_names if kept else ()
    params = adapting.adapt(
        params,
        original,
        target,
        source_class_names=description.class_names,
        target_class_names=class_names,
        posemb_resize=posemb_resize,
    )
    dtype = dtype or _compute_dtype(config["compute_dtype"])
    module = build(
        target,
        dtype=dtype,
        attention=_attention_here(config["model"]["attention"], target, dtype),
    )
    return Model(
        module,
        _moved(params),
        preprocessing.for_images(target.image_size, target.channels),
        class_names,
        config,
        description.step,
    )


def save(model: "Model", path: Path, format: str = "vit_jax") -> pathlib.Path:
    """Writes a model; an old file is replaced, a directory must be new or empty.

    Args:
      model: as `load` gives it; its `params` may have been changed since.
      path: NAME.safetensors for "vit_jax"; NAME.npz for "google" and "big_vision"; a
        directory for "huggingface", and either for "timm".
      format: one of these.

    Returns:
      The absolute path. What the format's files cannot say is logged.

    Raises:
      UserError: the format cannot express the model (says what), or the path cannot be
        written; then nothing has changed.
    """
    description = Description(
        model.architecture,
        model.preprocessing,
        model.class_names,
        model.config,
        model.step,
    )
    return save_weights(description, jax.device_get(model.params), path, format)


class Model:
    """A trained classifier, on the first device.

    Attributes:
      module: the Linen module; `module.apply({"params": params}, images)`.
      params: nested dict of float32 arrays.
      architecture: the function that they compute.
      preprocessing: what makes model input of images.
      class_names: in the order of the logits; () where nobody knows them.
      config: the resolved config that it was trained with.
      step: updates it was trained for.
    """

    def __init__(
        self,
        module: PatchModel,
        params: Any,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        config: dict[str, Any],
        step: int,
    ):
        """See the class; `load` makes one."""
        self.module = module
        self.params = jax.device_put(params, jax.devices()[0])
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.config = config
        self.step = step

    @property
    def architecture(self) -> ViTOrMixer:
        return self.module.architecture

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Float32 logits of images in the model's value range.

        `prepare` makes such images of files; `preprocessing.normalize` of uint8 arrays
        that have the model's size already.

        Raises:
          UserError: images of another shape or type.
        """
        return _logits(self.module, self.params, self._checked(images))

    def prepare(
        self, images: Path | UInt8[np.ndarray, "..."] | Sequence[Any]
    ) -> Float[Array, "b h w c"]:
        """Image files or uint8 arrays of any size as input for the model.

        Args:
          images: paths or uint8 arrays [h, w, c], or one of either.

        Raises:
          UserError: names every image that cannot be read.
        """
        pixels, problems = self._pixels(_as_list(images))
        _raise(problems)
        return self.preprocessing.normalize(jnp.asarray(pixels))

    def predict(
        self, images: Path | UInt8[np.ndarray, "..."] | Sequence[Any], top_k: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The most probable classes of each image, best first.

        Args:
          images: paths or uint8 arrays [h, w, c] of any size, or one of either.
          top_k: how many classes; at most all of them.

        Returns:
          For each image [(class name, probability), …]; a class without a name has its
          number. A model trained with the sigmoid loss answers yes or no for each
          class, so its probabilities do not sum to one.

        Raises:
          UserError: names every image that cannot be read.
        """
        if not _whole(top_k) or top_k < 1:
            raise UserError(f"top_k={top_k!r}: expected a whole number, at least 1")
        if not self.architecture.num_classes:
            raise UserError("this model has no head; load it without num_classes=0")
        found: list[list[tuple[str, float]]] = []
        problems: list[str] = []
        images = _as_list(images)
        for start in range(0, len(images), _BATCH):
            pixels, unreadable = self._pixels(images[start : start + _BATCH], start)
            problems += unreadable
            if not problems:
                # All at once or not at all: no forward passes for nothing.
                found += self._most_probable(pixels, top_k)
        _raise(problems)
        return found

    def features(
        self, images: Float[Array, "b h w c"], layers: Sequence[int] = (-1,)
    ) -> Features:
        """The tokens after some of the blocks, before the final norm.

        Args:
          images: as for the call.
          layers: the numbers of blocks; 0 is the first, −1 the last.

        Raises:
          UserError: a block that the model has not, or unfit images.
        """
        depth = self.architecture.depth
        if isinstance(layers, str) or not isinstance(layers, Sequence | np.ndarray):
            raise UserError(f"layers={layers!r}: expected a list of numbers of blocks")
        fits = (_whole(layer) and -depth <= layer < depth for layer in layers)
        if wrong := [layer for layer, fit in zip(layers, fits, strict=True) if not fit]:
            raise UserError(
                f"layers {wrong}: the model has {depth} blocks, from 0 to {depth - 1} "
                f"or from {-depth} to -1"
            )
        chosen = tuple(int(layer) % depth for layer in layers)
        return _features(self.module, self.params, self._checked(images), chosen)

    def attention(
        self, images: Float[Array, "b h w c"]
    ) -> Float[Array, "b depth heads n n"]:
        """Attention weights of every block and head, in float32; rows sum to one.

        Row i says where token i reads. Tokens: class token, registers, then the
        patches row by row, as `architecture` says.

        Raises:
          UserError: unfit images, or a model without attention.
        """
        if not isinstance(self.architecture, Architecture):
            raise UserError("an MLP-Mixer has no attention")
        return _attention(self.module, self.params, self._checked(images))

    def __repr__(self) -> str:
        a = self.architecture
        names = self.class_names
        shown = ", ".join(names if len(names) <= 3 else (*names[:2], "…", names[-1]))
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(self.params))
        return (
            f"Model({a.depth} blocks of width {a.width}, {a.mixing}, patches "
            f"{times(a.patch_size)}, images {times((*a.image_size, a.channels))}, "
            f"{a.num_classes} classes"
            f"{f' ({shown})' if shown else ''}, {count:,} parameters, step {self.step})"
        )

    def _checked(self, images: Any) -> Float[Array, "b h w c"]:
        a = self.architecture
        expected = (*a.image_size, a.channels)
        shape, dtype = np.shape(images), getattr(images, "dtype", None)
        if len(shape) != 4 or shape[1:] != expected:
            raise UserError(
                f"images of shape {shape}, expected (batch, *{expected}); "
                "model.prepare(images) makes them of files and arrays of any size"
            )
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(
                f"images of type {dtype}, expected floats in the model's value range; "
                "model.prepare(images) makes them of files and uint8 arrays"
            )
        return jnp.asarray(images, jnp.float32)

    def _pixels(
        self, images: Sequence[Any], first: int = 0
    ) -> tuple[UInt8[np.ndarray, "b h w c"], list[str]]:
        """The readable images, prepared as evaluation does; the others' problems."""
        a = self.architecture
        pixels, problems = [], []
        for number, image in enumerate(images, first):
            try:
                is_path = isinstance(image, str | pathlib.Path)
                name = str(image) if is_path else f"image {number}"
                pixels.append(self.preprocessing.prepare(image, name))
            except UserError as error:
                problems.append(str(error))
        empty = np.zeros((0, *a.image_size, a.channels), np.uint8)
        return np.stack(pixels) if pixels else empty, problems

    def _most_probable(
        self, pixels: UInt8[np.ndarray, "b h w c"], top_k: int
    ) -> list[list[tuple[str, float]]]:
        # Padded to a power of two, so that few programs are compiled for many counts.
        count = len(pixels)
        rows = 1 << (count - 1).bit_length()
        pixels = np.pad(pixels, [(0, rows - count), (0, 0), (0, 0), (0, 0)])
        logits = _logits(self.module, self.params, pixels, self.preprocessing)
        probabilities = _PROBABILITIES[self.config["loss"]](logits)
        best, classes = jax.lax.top_k(
            probabilities, min(top_k, self.architecture.num_classes)
        )
        return [
            [
                (self._name(index), probability)
                for index, probability in zip(indices, values, strict=True)
            ]
            for indices, values in zip(
                np.asarray(classes).tolist()[:count],
                np.asarray(best).tolist()[:count],
                strict=True,
            )
        ]

    def _name(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)


# What the losses make of logits.
_PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


@partial(jax.jit, static_argnums=(0, 3))
def _logits(module, params, images, preprocessing: Preprocessing | None = None):
    """With a preprocessing, images are uint8, as in evaluation."""
    if preprocessing is not None:
        images = preprocessing.normalize(images)
    return module.apply({"params": params}, images)


@partial(jax.jit, static_argnums=(0, 3))
def _features(module, params, images, layers: tuple[int, ...]) -> Features:
    a = module.architecture
    _, found = module.apply(
        {"params": params}, images, intermediates=("tokens", "pooled")
    )
    tokens = found["tokens"][:, jnp.array(layers, jnp.int32)]
    prefix, patches = jnp.split(tokens, [a.num_prefix_tokens], axis=2)
    b, count, _, d = patches.shape
    return Features(patches.reshape(b, count, *a.grid, d), prefix, found["pooled"])


@partial(jax.jit, static_argnums=0)
def _attention(module, params, images):
    _, found = module.apply({"params": params}, images, intermediates=("attention",))
    return found["attention"]


def _moved(params: Any) -> Any:
    """Nested arrays on the first device; emptied on the way.

    A leaf is given up as soon as it has been copied, so that a large model is never in
    memory twice.
    """
    if not isinstance(params, dict):
        return jax.device_put(params, jax.devices()[0])
    return {key: _moved(params.pop(key)) for key in list(params)}


def _size(name: str, size: Any) -> tuple[int, int] | None:
    """(height, width) of an argument; None if it was left out."""
    if size is None:
        return None
    with contextlib.suppress(TypeError, ValueError):
        if min(sides := pair(size)) >= 1:
            return sides
    raise UserError(f"{name}={size!r}: expected a number of pixels, or (height, width)")


def _has_pre_logits(architecture: ViTOrMixer) -> bool:
    return isinstance(architecture, Architecture) and architecture.pre_logits > 0


def _attention_here(name: str, architecture: ViTOrMixer, dtype: Any) -> str:
    """The formulation of the config, where it runs on the first device; else XLA's."""
    platform = jax.devices()[0].platform
    if name == "cudnn" and isinstance(architecture, Architecture):
        channels = architecture.width // architecture.num_heads
        name = "auto" if why_not_cudnn(platform, channels, dtype) else name
    if name == "auto":  # a training run would try what is faster
        return FASTEST_ON_CPU if platform == "cpu" else "xla"
    return name


def _compute_dtype(dtype: Any) -> Any:
    if isinstance(dtype, str) and dtype == "auto":
        dtype = "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise UserError(f"dtype={dtype!r}: choose float32 or bfloat16")
    return found


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _as_list(images: Any) -> list[Any]:
    """One image is a list of one; an array [b, h, w, c] is a list of b."""
    alone = isinstance(images, str | pathlib.Path)
    alone = alone or (hasattr(images, "ndim") and images.ndim != 4)
    return [images] if alone else list(images)


def _raise(problems: Sequence[str]):
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        raise UserError(f"{len(problems)} images cannot be read:\n{lines}")
