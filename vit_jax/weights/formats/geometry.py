"""Conversion between our chains of operations and the resizing of other libraries."""

import ast
import dataclasses
import inspect
from typing import Any, NamedTuple

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.transforms.chains import OPERATIONS
from vit_jax.words import pair, times

# Operations of a chain → whether it keeps the aspect ratio.
_CHAINS = {
    ("resize",): False,
    ("resize", "central_crop"): False,
    ("resize_small", "central_crop"): True,
}


class Geometry(NamedTuple):
    """A resize, then a central crop unless the image has the model's size already.

    Attributes:
      keeps_aspect: True if the resized image covers `size` and keeps its aspect ratio,
        False if it is squashed to `size`.
      size: (height, width).
      interpolation: a name from vit_jax/data/transforms/chains.py.
      side_rounding: how the longer side's length is rounded if the aspect is kept.
      crop_rounding: how the crop's offset is rounded if there is a crop.
    """

    keeps_aspect: bool
    size: tuple[int, int]
    interpolation: str
    side_rounding: str = "nearest"
    crop_rounding: str = "down"


def to_chain(geometry: Geometry, image_size: tuple[int, int]) -> str:
    """Writes a geometry as a chain of operations that ends at `image_size`."""
    keeps_aspect, (height, width), interpolation, side, crop = geometry
    arguments: dict[str, Any] = {"interpolation": interpolation}
    if keeps_aspect:
        arguments["rounding"] = side
    if not keeps_aspect and (height, width) == image_size:
        return _write("resize", arguments)
    arguments["size"] = height if height == width else (height, width)
    surplus = height - image_size[0], width - image_size[1]
    if not keeps_aspect and all(pixels % 2 == 0 for pixels in surplus):
        crop = "down"  # has no effect: nothing has to be rounded
    resize = _write("resize_small" if keeps_aspect else "resize", arguments)
    return f"{resize}|{_write('central_crop', {'rounding': crop})}"


def from_chain(preprocessing: Preprocessing) -> Geometry | None:
    """Reads a chain as a geometry; None if it is not a resize and perhaps a crop."""
    steps = [_read(part.strip()) for part in preprocessing.eval_transform.split("|")]
    keeps_aspect = _CHAINS.get(tuple(name for name, _ in steps))
    if keeps_aspect is None:
        return None
    resize, crop = steps[0][1], dict(steps).get("central_crop", {})
    size = resize.get("size", preprocessing.image_size)
    return Geometry(
        keeps_aspect,
        pair(size),
        resize["interpolation"],
        resize.get("rounding", "nearest"),
        crop.get("rounding", "down"),
    )


def usual_spelling(preprocessing: Preprocessing) -> str:
    """Returns the evaluation's chain, rewritten by `to_chain` if it is a geometry."""
    geometry = from_chain(preprocessing)
    if geometry is None:
        return preprocessing.eval_transform
    return to_chain(geometry, preprocessing.image_size)


def difference(theirs: str, preprocessing: Preprocessing) -> str:
    """Says in words how another library's chain differs from the evaluation's."""
    images = dataclasses.replace(preprocessing, eval_transform=theirs)
    there, here = from_chain(images), from_chain(preprocessing)
    if there is None or here is None:
        return "other operations"
    method, wanted = _in_words(there.interpolation), _in_words(here.interpolation)
    differs = {
        "squashed instead of keeping the aspect ratio": (
            here.keeps_aspect and not there.keeps_aspect
        ),
        "keeping the aspect ratio instead of squashed": (
            there.keeps_aspect and not here.keeps_aspect
        ),
        f"resized to {times(there.size)} instead of {times(here.size)}": (
            there.size != here.size
        ),
        f"{method} instead of {wanted}": method != wanted,
    }
    phrases = [phrase for phrase, present in differs.items() if present]
    return ", ".join(phrases) or "sides and offsets rounded differently"


def _in_words(interpolation: str) -> str:
    method = interpolation.removesuffix("_antialias")
    if method not in ("bilinear", "bicubic"):
        return interpolation
    return f"{method} {'without' if method == interpolation else 'with'} antialiasing"


def _write(name: str, arguments: dict[str, Any]) -> str:
    """Writes an operation without the arguments that have their defaults."""
    parts, named = [], ""
    for parameter in inspect.signature(OPERATIONS[name]).parameters.values():
        value = arguments.get(parameter.name, parameter.default)
        if value == parameter.default:
            named = "="  # later arguments can no longer be positional
        else:
            parts.append(f"{named and parameter.name + named}{value!r}")
    return name + (f"({', '.join(parts)})" if parts else "")


def _read(part: str) -> tuple[str, dict[str, Any]]:
    """Parses an operation to its name and arguments; ("", {}) if it is unknown."""
    call = ast.parse(part or "none", mode="eval").body
    if not isinstance(call, ast.Call):
        call = ast.Call(call, [], [])
    name = getattr(call.func, "id", "")
    if name not in OPERATIONS:
        return "", {}
    bound = inspect.signature(OPERATIONS[name]).bind_partial(
        *map(ast.literal_eval, call.args),
        **{str(key.arg): ast.literal_eval(key.value) for key in call.keywords},
    )
    bound.apply_defaults()
    return name, bound.arguments
