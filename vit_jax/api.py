"""The interface for notebooks: `load` a model, use it, `save` it."""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.checkpoints.description import Description
from vit_jax.errors import UserError
from vit_jax.model import Features as Features
from vit_jax.model import Model as Model
from vit_jax.model import check_outputs
from vit_jax.models import Architecture, ViTOrMixer, build
from vit_jax.models.attention.formulations import FASTEST_ON_CPU, why_not_cudnn
from vit_jax.models.decoder import DECODER
from vit_jax.models.flexible import fixed
from vit_jax.models.outputs import EXCLUSIVE, readable
from vit_jax.models.positions import METHODS
from vit_jax.reconstruction import DecoderOfModel
from vit_jax.versions import warn_of_untested
from vit_jax.weights import adapt as adapting
from vit_jax.weights.adapter_directories import Peft, compared_with_base
from vit_jax.weights.contents import split_params
from vit_jax.weights.decoders import fit_decoder
from vit_jax.weights.loading import load_weights, merged
from vit_jax.weights.patch_size import check_divides
from vit_jax.weights.saving import save_weights
from vit_jax.words import pair

Path = str | pathlib.Path


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
    ema: bool | float = True,
    outputs: str | None = None,
    entry: str = "",
    decoder_heads: int | None = None,
    normalize_pixels: bool | None = None,
    base: Path | None = None,
    merge: bool = False,
) -> Model:
    """Loads a model from any source; logs what was changed while loading.

    Args:
      source: a work directory (its newest checkpoint) or WORKDIR/checkpoints/STEP; a
        file in our own, Google's, big_vision's, timm's, torchvision's, mmpretrain's or
        Hugging Face's format, or a directory with one; a directory with an adapter of
        PEFT, which is applied to its base; a published name, see `python -m
        vit_jax.models`;
        "hf:owner/name"; an https URL.
      image_size: new size in pixels, or (height, width). Learned positions are resized,
        and the preprocessing produces images of this size.
      num_classes: new number of classes, which get a new zero head without class names;
        0 removes the head.
      patch_size: new size in pixels, or (height, width). The patch embedding is resized
        (arXiv:2212.08013), and so are the positions if the grid changes. A model that
        was trained with flexible patch sizes becomes an ordinary one of this size.
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
        False uses those of the last update, and a number such as 0.999 the average with
        that decay (`ema_decay` or one of `ema_decays`).
      outputs: what the outputs mean, if the source does not record it or is wrong:
        "exclusive" (an image has one of the classes), "independent" (a yes or no for
        each class) or "numbers" (plain numbers, such as an age).
      entry: the name of the model to read from a file with several, such as "ema" or
        "teacher.backbone"; the log names those that there are. "#entry=NAME" at the end
        of `source` does the same.
      decoder_heads: number of attention heads of a masked autoencoder's decoder, for a
        file that does not record it, if it is not the published 16.
      normalize_pixels: whether that decoder predicts pixels that are normalised within
        each patch, for a file that does not record it.
      base: for a work directory that holds only adapters and a head, or a directory of
        PEFT: the weights that they were trained beside, if these are not in the place
        that it records.
      merge: add LoRA adapters to the kernels, as `Model.merged` does.

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
        check_outputs(outputs)
    weights = load_weights(
        source,
        num_heads=num_heads,
        image_size=size,
        trained_image_size=trained,
        ema=ema,
        entry=entry,
        say_outputs=outputs is None and num_classes is None,
        decoder_heads=decoder_heads,
        normalize_pixels=normalize_pixels,
        base=base,
    )
    if merge:
        weights = merged(weights)
    description = weights.description
    params, beside = split_params(weights)
    del weights  # so that parameters can be released as they are moved
    original, config = description.architecture, description.config
    preprocessing = description.preprocessing
    own_method = getattr(original, "flexible_resize", "")
    posemb_resize = posemb_resize or own_method or config["posemb_resize"]
    if posemb_resize not in METHODS:
        raise UserError(
            f"posemb_resize={posemb_resize!r}: choose from {', '.join(METHODS)}"
        )
    if own_method:
        original = dataclasses.replace(original, flexible_resize=posemb_resize)
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
    if patch is not None:
        check_divides(patch, size or original.image_size)
    try:
        # What is stored at sizes of its own is resized once, for the size asked for.
        target = original if patch is None else fixed(original)
        target = dataclasses.replace(target, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
    # The classes stay the same unless the caller passed another number.
    kept = target.num_classes == original.num_classes
    class_names = description.output_names if kept else ()
    params = adapting.adapt(
        params,
        original,
        target,
        source_class_names=description.output_names,
        target_class_names=class_names,
        posemb_resize=posemb_resize,
    )
    decoder = None
    if (facts := description.decoder) is not None:
        fitted = fit_decoder(
            beside.pop(DECODER),
            facts,
            original,
            target,
            posemb_resize,
            same_values=preprocessing == description.preprocessing,
        )
        decoder = DecoderOfModel(facts, _moved(fitted)) if fitted else None
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
        description.examples,
        description.fingerprints,
        decoder,
        description.base,
    )


def save(model: Model, path: Path, format: str = "vit_jax") -> pathlib.Path:
    """Writes a model; replaces an old file, but a directory must be new or empty.

    Args:
      model: a model from `load`; its `params` may have been changed since.
      path: NAME.safetensors for "vit_jax", "mae", "torchvision" and "mmpretrain";
        NAME.npz for "google" and "big_vision"; a directory for "huggingface" and
        "peft" (adapters alone); for "timm", NAME.safetensors or a directory.
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
        model.examples,
        model.fingerprints,
        model.outputs,
        decoder=model.decoder and model.decoder.facts,
        base=model.base,
    )
    params = model.params | ({DECODER: model.decoder.params} if model.decoder else {})
    params = jax.device_get(params)
    peft = Peft()
    if format == "peft":
        peft = Peft(beside=compared_with_base(description, params, load_weights))
    return save_weights(description, params, path, format, peft)


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
