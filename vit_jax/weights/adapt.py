"""Adaptation of one model's weights to another model's input, grid and head."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoints.compare import compare_trees
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.class_names import match_names
from vit_jax.errors import UserError
from vit_jax.models import (
    Architecture,
    MixerArchitecture,
    ViTOrMixer,
    abstract_params,
)
from vit_jax.models.positions import METHODS
from vit_jax.weights.adapt_tokens import fit_pooling, fit_positions
from vit_jax.words import times

logger = logging.getLogger(__name__)

# Fields that may differ. All others must agree: some of them (such as the kind of GELU)
# do not affect the shapes and would silently change the function.
_ADAPTABLE = ("image_size", "num_classes", "pre_logits", "channels", "patch_size")
_HEADS = ("head", "head_distillation")


def adapt(
    params: Any,
    source: ViTOrMixer,
    target: ViTOrMixer,
    *,
    source_class_names: Sequence[str] = (),
    target_class_names: Sequence[str] = (),
    keep_head: bool = True,
    head_bias: float = 0.0,
    head_std: float = 0.0,
    seed: int = 0,
    posemb_resize: str = "bicubic",
    quiet: bool = False,
) -> Any:
    """Adapts the parameters of `source` to the architecture `target`.

    Positions are converted to the target's grid and kind (`fit_positions`), the patch
    embedding to its patch size (`resize_patches`) and channels (`change_channels`). The
    head is kept if both models have the same classes and feed it from the same layer;
    otherwise a new head replaces it, for which pooling and the final norm may change
    too (`fit_pooling`). A tanh layer before the head is dropped if the target has none.
    Everything else must match. Changes are logged.

    Args:
      params: nested dict of arrays.
      source: architecture of `params`.
      target: architecture of the result.
      source_class_names: in the order of the head's outputs; () = unknown.
      target_class_names: class names of the target, in the same form.
      keep_head: False replaces the head even if the classes agree, which is how the
        paper fine-tunes.
      head_bias: initial bias of a new head.
      head_std: standard deviation of its initial kernel; 0 = all zeros.
      seed: determines that kernel.
      posemb_resize: a method of `vit_jax.models.positions.METHODS`.
      quiet: do not log the changes.

    Returns:
      A nested dict of float32 numpy arrays; unchanged arrays are not copied.

    Raises:
      UserError: lists every field and parameter that does not match.
    """
    expected = abstract_params(target)
    adapted = dict(params)
    done = []

    if isinstance(source, type(target)):
        done += _fit_input(adapted, source, target)
        if "pre_logits" in adapted and "pre_logits" not in expected:
            del adapted["pre_logits"]
            done.append("the tanh layer before the head dropped")
    reason = new_head_because(
        source, target, source_class_names, target_class_names, keep_head
    )
    now = source
    if isinstance(source, Architecture) and isinstance(target, Architecture):
        now, lines = fit_positions(adapted, source, target, posemb_resize)
        done += lines
        if reason:
            now, lines = fit_pooling(adapted, now, target)
            done += lines
    if reason:
        for name in _HEADS:
            adapted.pop(name, None)
        for number, name in enumerate(sorted(expected.keys() & _HEADS)):
            kernel, bias = expected[name]["kernel"], expected[name]["bias"]
            rng = np.random.default_rng([seed, number])
            adapted[name] = {
                "kernel": _normal(rng, kernel.shape, head_std),
                "bias": np.full(bias.shape, head_bias, np.float32),
            }
        kind = f"random values of deviation {head_std:g}" if head_std else "zeros"
        what = f"replaced by a new one with {kind}" if target.num_classes else "removed"
        done.append(f"the head {what}: {reason}")

    _check(now, target, expected, adapted)
    for line in () if quiet else done:
        # Warnings, because these show in a notebook even if logging is not set up.
        logger.warning("pretrained weights: %s", line)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), adapted)


def resize_patches(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a patch embedding's kernel to patches of another size.

    This is the pseudo-inverse resize of arXiv:2212.08013: among all new kernels, the
    result's tokens of bilinearly enlarged patches are closest to the old kernel's
    tokens of the original patches.

    Args:
      kernel: [h, w, channels, d].
      size: new (height, width).
    """
    rows, columns = (
        np.linalg.pinv(METHODS["bilinear"](old, new).T)
        for old, new in zip(kernel.shape[:2], size, strict=True)
    )
    resized = np.einsum("yh,xw,hwcd->yxcd", rows, columns, kernel.astype(np.float64))
    return resized.astype(np.float32)


def change_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Converts the first layer's kernel to another number of channels.

    A single new channel gets the sum over the old ones. Otherwise the old channels are
    repeated in turn and scaled by old / new number. With one channel, or a multiple of
    the old number, an image whose channels are all equal gives the same tokens as
    before.

    Args:
      kernel: [h, w, old channels, d].
      channels: the new number of channels.
    """
    total = kernel.sum(axis=2, keepdims=True)
    if channels == 1:
        return total
    tiled = np.take(kernel, np.arange(channels) % kernel.shape[2], axis=2)
    return (tiled * (kernel.shape[2] / channels)).astype(np.float32)


def fold_normalization(
    params: Any, architecture: ViTOrMixer, preprocessing: Preprocessing
) -> tuple[Any, Preprocessing]:
    """Folds the input's mean and standard deviation into the patch embedding.

    The result computes the same function of the image from input in [−1, 1].

    Raises:
      UserError: the model has a trunk, whose first convolution standardises its weights
        and so undoes any scale.
    """
    if _has_trunk(architecture):
        raise UserError(
            "the mean and standard deviation of the input cannot be folded into this "
            "model: its first convolution standardises its weights, so their scale "
            "has no effect. Keep its preprocessing"
        )
    logger.warning("pretrained weights: folded the mean and std of the input into them")
    return _renormalized(params, preprocessing, mean=0.5, std=0.5)


def even_normalization(
    params: Any, architecture: ViTOrMixer, preprocessing: Preprocessing
) -> tuple[Any, Preprocessing]:
    """Changes the normalisation to one mean and std for all channels.

    The result computes the same function of the image. Call this before the number of
    channels changes: the new channels mix the old ones, so no old channel's mean or
    standard deviation fits them. Nothing changes for a model with a trunk, whose first
    convolution standardises its weights and so undoes any scale.
    """
    mean, std = preprocessing.mean, preprocessing.std
    if _has_trunk(architecture) or len(set(mean)) == len(set(std)) == 1:
        return params, preprocessing
    average = sum(mean) / len(mean), sum(std) / len(std)
    return _renormalized(params, preprocessing, *average)


def new_head_because(
    source: ViTOrMixer,
    target: ViTOrMixer,
    source_names: Sequence[str],
    target_names: Sequence[str],
    keep_head: bool = True,
) -> str:
    """Gives the reason to replace the source's head; "" if it can be kept.

    The arguments are those of `adapt`.
    """
    if source.num_classes != target.num_classes:
        return f"{source.num_classes} classes before, {target.num_classes} now"
    if not source.num_classes:
        return ""
    if not keep_head:
        return "a new head was requested"
    # Names that nobody knows are not other names.
    known = source_names and target_names
    if known and tuple(source_names) != tuple(target_names):
        return f"{source.num_classes} classes as before, but with other names"
    if getattr(source, "pre_logits", 0) != getattr(target, "pre_logits", 0):
        return "it read a different layer"
    return ""


def heads_by_name(
    params: Any,
    source: ViTOrMixer,
    source_names: Sequence[str],
    target_names: Sequence[str],
) -> tuple[Any, ViTOrMixer, tuple[str, ...]]:
    """Orders the head's outputs by other class names, which are some or all of its own.

    Nothing changes if the names are the same, unknown, not unique, or not all among the
    head's own. Names are compared as `match_names` does.

    Args:
      params: nested dict of arrays.
      source: their architecture.
      source_names: in the order of the head's outputs; () = unknown.
      target_names: class names in the wanted order.

    Returns:
      Parameters, architecture and class names.
    """
    names, wanted = tuple(source_names), tuple(target_names)
    if not wanted or names == wanted or len(set(wanted)) < len(wanted):
        return params, source, names
    try:
        order = match_names(wanted, names)
    except UserError:
        return params, source, names
    if -1 in order:
        return params, source, names
    reordered = {
        name: {leaf: np.asarray(x)[..., order] for leaf, x in params[name].items()}
        for name in _HEADS
        if name in params
    }
    logger.warning(
        "pretrained weights: the outputs of the head were matched with the classes by "
        "name; %d of %d are used",
        len(wanted),
        len(names),
    )
    return (
        dict(params) | reordered,
        dataclasses.replace(source, num_classes=len(wanted)),
        wanted,
    )


def _normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    if not std:
        return np.zeros(shape, np.float32)
    return (std * rng.standard_normal(shape)).astype(np.float32)


def _renormalized(
    params: Any, preprocessing: Preprocessing, mean: float, std: float
) -> tuple[Any, Preprocessing]:
    """Changes the patch embedding so that it takes input normalised by mean and std."""
    old_mean, old_std = (
        np.asarray(x, np.float64) for x in (preprocessing.mean, preprocessing.std)
    )
    kernel, bias = (
        np.asarray(params["patch_embed"][name], np.float64)
        for name in ("kernel", "bias")
    )
    shift = np.einsum("hwcd,c->d", kernel, (mean - old_mean) / old_std)
    embedding = {
        "kernel": (kernel * (std / old_std)[:, None]).astype(np.float32),
        "bias": (bias + shift).astype(np.float32),
    }
    return (
        dict(params) | {"patch_embed": embedding},
        dataclasses.replace(preprocessing, mean=(mean,), std=(std,)),
    )


def _has_trunk(architecture: ViTOrMixer) -> bool:
    return getattr(architecture, "trunk", None) is not None


def _fit_input(
    adapted: dict[str, Any], source: ViTOrMixer, target: ViTOrMixer
) -> list[str]:
    """Adapts channels and patch size in place; returns a phrase for each change."""
    done = []
    if source.channels != target.channels:
        # In a model with a trunk, the trunk's first convolution reads the image.
        path = ("trunk", "conv_root") if "trunk" in adapted else ("patch_embed",)
        node = adapted
        for key in path:
            node[key] = dict(node[key])
            node = node[key]
        node["kernel"] = change_channels(np.asarray(node["kernel"]), target.channels)
        done.append(
            f"the first layer changed to read {target.channels} channels instead of "
            f"{source.channels}"
        )
    old, new = source.embed_kernel, target.embed_kernel
    if old != new:
        embedding = dict(adapted["patch_embed"])
        embedding["kernel"] = resize_patches(np.asarray(embedding["kernel"]), new)
        adapted["patch_embed"] = embedding
        done.append(
            f"the patch embedding resized from {times(source.patch_size)} to "
            f"{times(target.patch_size)} pixels (pseudo-inverse)"
        )
    return done


def _check(source: ViTOrMixer, target: ViTOrMixer, expected: Any, found: Any):
    """Raises UserError unless fields and parameters match those of the target."""
    before, now = ({"kind": type(a).__name__} | a.to_dict() for a in (source, target))
    adaptable = set(_ADAPTABLE)
    fixed_grid = isinstance(source, MixerArchitecture) and source.grid != target.grid
    if fixed_grid:
        adaptable -= {"image_size", "patch_size"}
    fields = [
        f"  {name}: {before.get(name, 'absent')!r} in the weights, "
        f"{now.get(name, 'absent')!r} in the model"
        for name in before | now
        if before.get(name) != now.get(name) and name not in adaptable
    ]
    parameters = compare_trees(expected, found)
    if not fields and not parameters:
        return
    parts = ["the pretrained weights have another architecture than the model."]
    if fields:
        parts.append("\n".join(["These fields differ:", *fields]))
    if parameters:
        parts.append(parameters)
    if before.get("class_token") and now.get("class_token") is False:
        parts.append(
            "To keep the class token beside another pooling, set model.class_token=on."
        )
    if fixed_grid:
        parts.append(
            "An MLP-Mixer mixes a fixed number of patches: keep the grid of "
            f"{times(source.grid)} that it was trained with."
        )
    else:
        parts.append(
            "Set the variant and options of the weights in the config, or leave "
            "model.variant empty to take the architecture from the weights."
        )
    raise UserError("\n".join(parts))
