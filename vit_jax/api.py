"""The interface for notebooks: `load` a model, use it, `save` it."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vit_jax.checkpoints.description import Description
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, PatchModel, ViTOrMixer, build
from vit_jax.models.attention.formulations import FASTEST_ON_CPU, why_not_cudnn
from vit_jax.models.outputs import (
    EXCLUSIVE,
    INDEPENDENT,
    NUMBERS,
    check,
    is_probability,
    of_loss,
    readable,
    show,
)
from vit_jax.models.positions import METHODS
from vit_jax.prediction.inputs import inputs
from vit_jax.prediction.passes import Passes, Prediction
from vit_jax.prediction.stream import Prepared, prepared
from vit_jax.versions import warn_of_untested
from vit_jax.weights import adapt as adapting
from vit_jax.weights.loading import load_weights
from vit_jax.weights.saving import save_weights
from vit_jax.words import pair, times

Path = str | pathlib.Path
# What the outputs mean → what they are called in `repr`.
_NOUNS = {
    EXCLUSIVE: "classes",
    INDEPENDENT: "independent classes",
    NUMBERS: "plain numbers",
}
_BATCH = 32  # images per forward pass, unless the caller says otherwise


class Features(NamedTuple):
    """The features that `Model.features` returns, layers in the order requested."""

    patches: Float[Array, "b layers gh gw d"]  # patch tokens on their grid
    prefix: Float[Array, "b layers p d"]  # class token, then registers
    pooled: Float[Array, "b d"]  # result of pooling at the end of the model


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
    outputs: str | None = None,
) -> "Model":
    """Loads a model from any source; logs what was changed while loading.

    Args:
      source: a work directory (its newest checkpoint) or WORKDIR/checkpoints/STEP; a
        file in our own, Google's, big_vision's, timm's or Hugging Face's format, or a
        directory with one; a published name, see `python -m vit_jax.models`;
        "hf:owner/name"; an https URL.
      image_size: new size in pixels, or (height, width). Learned positions are resized,
        and the preprocessing produces images of this size.
      num_classes: new number of classes, which get a new zero head without class names;
        0 removes the head.
      patch_size: new size in pixels, or (height, width). The patch embedding is resized
        (arXiv:2212.08013), and so are the positions if the grid changes.
      channels: new number of image channels; the first layer is averaged or tiled.
      pre_logits: False drops the tanh layer before the head, if there is one, and the
        head that read it.
      posemb_resize: method for learned positions, one of
        `vit_jax.models.positions.METHODS`; by default the method in the model's config,
        or that of the family's own code.
      num_heads: number of attention heads, for a file that does not record it.
      trained_image_size: image size that the positions in a file belong to, if the grid
        is not square and neither the file nor a config beside it records the size.
      fold_normalization: fold the mean and standard deviation of the input into the
        patch embedding, so that the model reads [−1, 1].
      dtype: dtype of activations; by default that of the model's config, as in
        training, where "auto" is bfloat16 on TPU and GPU and float32 on the CPU.
      ema: use the averaged weights of a work directory that has any (`ema_decay`);
        False uses those of the last update.
      outputs: what the outputs mean, if the source does not record it or is wrong:
        "exclusive" (an image has one of the classes), "independent" (a yes or no for
        each class) or "numbers" (plain numbers, such as an age).

    Raises:
      UserError: there is no such model, or an argument is invalid.
    """
    warn_of_untested()
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"source={source!r}: expected a path, a name or a URL")
    sizes = {
        "image_size": image_size,
        "patch_size": patch_size,
        "trained_image_size": trained_image_size,
    }
    size, patch, trained = (_size(name, value) for name, value in sizes.items())
    dtype = None if dtype is None else _compute_dtype(dtype)
    if outputs is not None:
        _check_outputs(outputs)
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
    # The classes stay the same unless the caller passed another number.
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
        outputs
        or readable(description.outputs if kept else EXCLUSIVE, target.num_classes),
    )


def save(model: "Model", path: Path, format: str = "vit_jax") -> pathlib.Path:
    """Writes a model; replaces an old file, but a directory must be new or empty.

    Args:
      model: a model from `load`; its `params` may have been changed since.
      path: NAME.safetensors for "vit_jax"; NAME.npz for "google" and "big_vision"; a
        directory for "huggingface"; for "timm", NAME.safetensors or a directory.
      format: name of the format.

    Returns:
      The absolute path. Facts that the format cannot record are logged.

    Raises:
      UserError: the format cannot express the model (says why), or the path cannot be
        written; then nothing has changed.
    """
    description = Description(
        model.architecture,
        model.preprocessing,
        model.class_names,
        model.config,
        model.step,
        outputs=model.outputs,
    )
    return save_weights(description, jax.device_get(model.params), path, format)


class Model:
    """A trained classifier, on the first device.

    Attributes:
      module: the Linen module; `module.apply({"params": params}, images)`.
      params: nested dict of float32 arrays.
      architecture: the function that they compute.
      preprocessing: turns images into model input.
      class_names: names in the order of the logits; () if unknown.
      config: the resolved config that the model was trained with.
      step: number of updates that it was trained for.
      outputs: what the outputs mean: "exclusive" (an image has one of the classes),
        "independent" (a yes or no for each class) or "numbers" (plain numbers).
    """

    def __init__(
        self,
        module: PatchModel,
        params: Any,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        config: dict[str, Any],
        step: int,
        outputs: str = "",
    ):
        """Makes a model from its parts; `load` does that for you."""
        self.module = module
        self.params = jax.device_put(params, jax.devices()[0])
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.config = config
        self.step = step
        classes = module.architecture.num_classes
        self.outputs = outputs or readable(of_loss(config["loss"]), classes)

    @property
    def architecture(self) -> ViTOrMixer:
        return self.module.architecture

    @property
    def outputs(self) -> str:
        return self._outputs

    @outputs.setter
    def outputs(self, outputs: str):
        _check_outputs(outputs, self.architecture.num_classes)
        self._outputs = outputs

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Computes float32 logits of images in the model's value range.

        `prepare` makes such images from files, `preprocessing.normalize` from uint8
        arrays that already have the model's size.

        Raises:
          UserError: the images have another shape or type.
        """
        return _logits(self.module, self.params, self._checked(images))

    def prepare(self, images: Any) -> Float[Array, "b h w c"]:
        """Converts images of any size and kind to input for the model.

        Args:
          images: an image or several, as in `predict`.

        Raises:
          UserError: names every image that cannot be read.
        """
        found = list(self._prepared(images, _BATCH))
        _raise([image.error for image in found if image.error is not None])
        a = self.architecture
        pixels = np.zeros((len(found), *a.image_size, a.channels), np.uint8)
        for number, image in enumerate(found):
            if image.pixels is not None:
                pixels[number] = image.pixels
        return self.preprocessing.normalize(jnp.asarray(pixels))

    def predict(
        self, images: Any, top_k: int = 5, *, errors: str = "raise"
    ) -> list[Any]:
        """Predicts the most probable classes of each image, best first; or numbers.

        Args:
          images: paths, folders (all the images in them), https addresses, bytes of
            image files, binary file objects, PIL images, uint8 arrays [h, w] or
            [h, w, c] of any size (NumPy's, JAX's or another library's), batches of
            them [b, h, w, c]; or a list or iterator of any of these.
          top_k: number of classes; at most all of them.
          errors: "raise", or "return" to get the UserError of an image that cannot be
            read in place of its result.

        Returns:
          For each image [(class name, probability), …]; a class without a name is given
          by its index. If `outputs` is "independent", the probabilities are those of a
          yes for each class and do not sum to one. If it is "numbers", all outputs are
          returned as they are, in their own order.

        Raises:
          UserError: an argument is invalid; or names every image that cannot be read.
        """
        if errors not in ("raise", "return"):
            raise UserError(f"errors={errors!r}: choose raise or return")
        keep = errors == "return"
        found, problems = [], []
        for image in self._stream(images, top_k, _BATCH, keep):
            if image.error is not None:
                problems.append(image.error)
            found.append(image.error or image.top)
        if not keep:
            _raise(problems)
        return found

    def stream(
        self, images: Any, top_k: int = 5, *, batch_size: int = _BATCH
    ) -> Iterator[Prediction]:
        """Predicts any number of images in bounded memory, one by one and in order.

        Threads read and prepare the next images while the device computes.

        Args:
          images: as in `predict`; an iterator is consumed as the results are.
          top_k: number of classes; at most all of them.
          batch_size: images per forward pass.

        Returns:
          An iterator over the predictions. An image that cannot be read has an `error`
          instead of a result.

        Raises:
          UserError: an argument is invalid.
        """
        return self._stream(images, top_k, batch_size, True)

    def features(
        self, images: Float[Array, "b h w c"], layers: Sequence[int] = (-1,)
    ) -> Features:
        """Computes the tokens after some of the blocks, before the final norm.

        Args:
          images: images as in `__call__`.
          layers: indices of blocks; 0 is the first, −1 the last.

        Raises:
          UserError: the model has no such block, or the images have another shape or
            type.
        """
        depth = self.architecture.depth
        if isinstance(layers, str) or not isinstance(layers, Sequence | np.ndarray):
            raise UserError(f"layers={layers!r}: expected a list of block indices")
        fits = (_whole(layer) and -depth <= layer < depth for layer in layers)
        if wrong := [layer for layer, fit in zip(layers, fits, strict=True) if not fit]:
            raise UserError(
                f"layers {wrong}: the model has {depth} blocks; expected indices from "
                f"0 to {depth - 1} or from {-depth} to -1"
            )
        chosen = tuple(int(layer) % depth for layer in layers)
        return _features(self.module, self.params, self._checked(images), chosen)

    def attention(
        self, images: Float[Array, "b h w c"]
    ) -> Float[Array, "b depth heads n n"]:
        """Computes float32 attention weights of every block and head; rows sum to one.

        Row i has the weights by which token i reads the others. Tokens: class token,
        registers, then the patches row by row, as in `architecture`.

        Raises:
          UserError: the images have another shape or type, or the model has no
            attention.
        """
        if not isinstance(self.architecture, Architecture):
            raise UserError("this model is an MLP-Mixer, which has no attention")
        return _attention(self.module, self.params, self._checked(images))

    def __repr__(self) -> str:
        a = self.architecture
        names = self.class_names
        shown = ", ".join(names if len(names) <= 3 else (*names[:2], "…", names[-1]))
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(self.params))
        return (
            f"Model({a.depth} blocks of width {a.width}, {a.mixing}, patches "
            f"{times(a.patch_size)}, images {times((*a.image_size, a.channels))}, "
            f"{a.num_classes} {_NOUNS[self.outputs]}"
            f"{f' ({shown})' if shown else ''}, {count:,} parameters, step {self.step})"
        )

    def _checked(self, images: Any) -> Float[Array, "b h w c"]:
        a = self.architecture
        expected = (*a.image_size, a.channels)
        shape, dtype = np.shape(images), getattr(images, "dtype", None)
        if len(shape) != 4 or shape[1:] != expected:
            raise UserError(
                f"images have shape {shape}; expected (batch, *{expected}). "
                "model.prepare(images) makes them from files and arrays of any size"
            )
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(
                f"images have type {dtype}; expected floats in the model's value "
                "range. model.prepare(images) makes them from files and uint8 arrays"
            )
        return jnp.asarray(images, jnp.float32)

    def _prepared(self, images: Any, ahead: int) -> Iterator[Prepared]:
        listed = inputs(images, self.architecture.channels)
        return prepared(listed, self.preprocessing.prepare, ahead)

    def _stream(
        self, images: Any, top_k: int, batch_size: int, after_error: bool
    ) -> Iterator[Prediction]:
        """Predicts images; without `after_error` only reads those after a bad one."""
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if not _whole(value) or value < 1:
                raise UserError(
                    f"{name}={value!r}: expected a whole number of at least 1"
                )
        if not self.architecture.num_classes:
            raise UserError("this model has no head; load it without num_classes=0")
        passes = Passes(
            partial(self._ranked, top_k=int(top_k)),
            self._name,
            batch_size=int(batch_size),
            after_error=after_error,
        )
        return passes(self._prepared(images, 2 * int(batch_size)))

    def _ranked(
        self, pixels: UInt8[np.ndarray, "b h w c"], top_k: int
    ) -> tuple[Int[Array, "b top_k"], Float[Array, "b top_k"]]:
        """Computes the classes to show and their values; does not wait for them."""
        logits = _logits(self.module, self.params, pixels, self.preprocessing)
        values, num_classes = show(self.outputs, logits), self.architecture.num_classes
        if is_probability(self.outputs):
            # By the logits, because probabilities near 0 or 1 may be equal.
            _, classes = jax.lax.top_k(logits, min(top_k, num_classes))
        else:
            classes = jnp.broadcast_to(jnp.arange(num_classes), logits.shape)
        return classes, jnp.take_along_axis(values, classes, axis=-1)

    def _name(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)


@partial(jax.jit, static_argnums=(0, 3))
def _logits(module, params, images, preprocessing: Preprocessing | None = None):
    """Computes logits; with a preprocessing, of uint8 images, as in evaluation."""
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
    """Moves nested arrays to the first device, which empties `params`.

    Each leaf is released as soon as it has been copied, so that a large model is never
    in memory twice.
    """
    if not isinstance(params, dict):
        return jax.device_put(params, jax.devices()[0])
    return {key: _moved(params.pop(key)) for key in list(params)}


def _size(name: str, size: Any) -> tuple[int, int] | None:
    """Reads (height, width) from an argument; None if it was left out."""
    if size is None:
        return None
    with contextlib.suppress(TypeError, ValueError):
        if min(sides := pair(size)) >= 1:
            return sides
    raise UserError(f"{name}={size!r}: expected a number of pixels, or (height, width)")


def _check_outputs(outputs: str, num_classes: int = 0):
    """Raises UserError if outputs cannot mean that."""
    try:
        check(outputs, num_classes)
    except ValueError as error:
        raise UserError(str(error)) from error


def _has_pre_logits(architecture: ViTOrMixer) -> bool:
    return isinstance(architecture, Architecture) and architecture.pre_logits > 0


def _attention_here(name: str, architecture: ViTOrMixer, dtype: Any) -> str:
    """Returns the config's formulation if it runs on the first device, else XLA's."""
    platform = jax.devices()[0].platform
    if name == "cudnn" and isinstance(architecture, Architecture):
        channels = architecture.width // architecture.num_heads
        name = "auto" if why_not_cudnn(platform, channels, dtype) else name
    if name == "auto":  # only a training run tries out which one is the fastest
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


def _raise(problems: Sequence[UserError]):
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        raise UserError(f"{len(problems)} images cannot be read:\n{lines}")
