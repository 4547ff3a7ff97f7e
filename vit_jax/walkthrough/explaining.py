"""The walkthrough of a variant, an architecture, a model, or weights of any source."""

import dataclasses
import pathlib
from typing import Any

from vit_jax.errors import UserError
from vit_jax.model import Model
from vit_jax.models import (
    Architecture,
    MixerArchitecture,
    ViTOrMixer,
    architecture_from_variant,
    parse_variant,
)
from vit_jax.walkthrough.stages import stages_of
from vit_jax.walkthrough.walkthroughs import Walkthrough
from vit_jax.weights.loading import load_weights
from vit_jax.words import did_you_mean, pair, times

# Of a variant, if the caller does not say otherwise: those of ImageNet.
_IMAGE_SIZE, _CLASSES = (224, 224), 1000


def explain(
    model: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **fields: Any,
) -> Walkthrough:
    """Shows an image's way through a model: shapes, parameters and FLOPs by stage.

    Nothing is computed: the module is traced. `print` the result for a table;
    `.drawing()` is an SVG file, `.stages` has the numbers.

    Args:
      model: the name of a variant, such as "B/16", "R50+B/16" or "Mixer-B/16"; an
        architecture; a model; or whatever `vit_jax.load` takes (a file that has a
        variant's name is "./B/16").
      image_size: size in pixels, or (height, width); by default the model's own, and
        224 for a variant.
      num_classes: number of logits; by default the model's own, and 1,000 for a
        variant.
      **fields: other fields of the architecture, such as `pooling="gap"`,
        `registers=4` or `patch_size=14`.

    Raises:
      UserError: there is no such model or field, or the architecture is impossible.
    """
    given: dict[str, Any] = dict(fields)
    if image_size is not None:
        given["image_size"] = _size("image_size", image_size)
    if num_classes is not None:
        given["num_classes"] = num_classes
    if "patch_size" in given:
        given["patch_size"] = _size("patch_size", given["patch_size"])
    name, architecture = _found(model, given)
    return Walkthrough(name, architecture, stages_of(architecture))


def _found(model: Any, given: dict[str, Any]) -> tuple[str, ViTOrMixer]:
    """Returns a model's name and its architecture with the given fields."""
    if isinstance(model, str) and (reason := _why_no_variant(model)) is None:
        sizes = {"image_size": _IMAGE_SIZE, "num_classes": _CLASSES}
        try:
            return model, architecture_from_variant(model, **(sizes | given))
        except ValueError as error:
            raise UserError(str(error)) from error
    if isinstance(model, Model):
        return _described(model.architecture), _changed(model.architecture, given)
    if isinstance(model, Architecture | MixerArchitecture):
        return _described(model), _changed(model, given)
    if not isinstance(model, str | pathlib.Path):
        raise UserError(
            f"model={model!r}: expected the name of a variant, an architecture, a "
            "model, or the path or name of weights"
        )
    try:
        weights = load_weights(
            model,
            num_heads=given.get("num_heads"),
            image_size=given.get("image_size"),
        )
    except UserError as error:
        if not isinstance(model, str) or pathlib.Path(model).exists():
            raise
        raise UserError(f"{error}\nnor a variant: {reason}") from error
    return str(model), _changed(weights.description.architecture, given)


def _why_no_variant(name: str) -> str | None:
    """Explains why a text is not the name of a variant; None if it is one."""
    try:
        parse_variant(name)
    except ValueError as error:
        return str(error)
    return None


def _changed(architecture: ViTOrMixer, given: dict[str, Any]) -> ViTOrMixer:
    """Returns an architecture with other values of some fields."""
    names = [field.name for field in dataclasses.fields(architecture)]
    if unknown := [name for name in given if name not in names]:
        hints = "".join(did_you_mean(name, names) for name in unknown)
        raise UserError(
            f"{', '.join(unknown)}: {type(architecture).__name__} has no such field; "
            f"it has {', '.join(names)}{hints}"
        )
    try:
        return dataclasses.replace(architecture, **given)
    except ValueError as error:
        raise UserError(str(error)) from error


def _described(architecture: ViTOrMixer) -> str:
    a = architecture
    return (
        f"{a.depth} blocks of width {a.width}, {a.mixing}, patches "
        f"{times(a.patch_size)}"
    )


def _size(name: str, size: Any) -> tuple[int, int]:
    try:
        return pair(size)
    except (TypeError, ValueError):
        raise UserError(
            f"{name}={size!r}: expected a number of pixels, or (height, width)"
        ) from None
