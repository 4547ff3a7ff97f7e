"""How other libraries say what becomes of an image's size, and our chains, in turn."""

import ast
import inspect
from typing import Any, NamedTuple

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.transforms.chains import OPERATIONS
from vit_jax.words import pair

# Operations of a chain → whether it keeps the aspect.
_CHAINS = {
    ("resize",): False,
    ("resize", "central_crop"): False,
    ("resize_small", "central_crop"): True,
}


class Geometry(NamedTuple):
    """A resize, and a crop of the centre unless that has the model's size already.

    Attributes:
      keeps_aspect: whether the resized image covers `size`, or is squashed into it.
      size: (height, width).
      interpolation: as in vit_jax/data/transforms/chains.py.
      side_rounding: of the longer side's length, where the aspect is kept.
      crop_rounding: of the crop's offset, where there is a crop.
    """

    keeps_aspect: bool
    size: tuple[int, int]
    interpolation: str
    side_rounding: str = "nearest"
    crop_rounding: str = "down"


def to_chain(geometry: Geometry, image_size: tuple[int, int]) -> str:
    """The chain of operations that does it, ending at `image_size`."""
    keeps_aspect, (height, width), interpolation, side, crop = geometry
    arguments: dict[str, Any] = {"interpolation": interpolation}
    if keeps_aspect:
        arguments["rounding"] = side
    if not keeps_aspect and (height, width) == image_size:
        return _write("resize", arguments)
    arguments["size"] = height if height == width else (height, width)
    surplus = height - image_size[0], width - image_size[1]
    if not keeps_aspect and all(pixels % 2 == 0 for pixels in surplus):
        crop = "down"  # or any other: nothing has to be rounded
    resize = _write("resize_small" if keeps_aspect else "resize", arguments)
    return f"{resize}|{_write('central_crop', {'rounding': crop})}"


def from_chain(preprocessing: Preprocessing) -> Geometry | None:
    """What a chain does, if it is of that kind."""
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
    """Its chain, as `to_chain` writes it if it is of that kind."""
    geometry = from_chain(preprocessing)
    if geometry is None:
        return preprocessing.eval_transform
    return to_chain(geometry, preprocessing.image_size)


def _write(name: str, arguments: dict[str, Any]) -> str:
    """An operation, without the arguments that are so if left out."""
    parts, named = [], ""
    for parameter in inspect.signature(OPERATIONS[name]).parameters.values():
        value = arguments.get(parameter.name, parameter.default)
        if value == parameter.default:
            named = "="  # those after it are not at their place
        else:
            parts.append(f"{named and parameter.name + named}{value!r}")
    return name + (f"({', '.join(parts)})" if parts else "")


def _read(part: str) -> tuple[str, dict[str, Any]]:
    """An operation's name and arguments, "" if it is none."""
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
