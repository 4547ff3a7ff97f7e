"""Transforms of one image, and chains of them written as text.

    "inception_crop|flip_lr"          training
    "resize"                          evaluation as in the published fine-tuning code
    "resize_small(256)|central_crop"  evaluation of most ImageNet models
    ""                                pixels as they are
    "resize_small(248, 'bicubic_antialias', 'down')|central_crop(rounding='nearest')"
                                      evaluation in timm, as torchvision computes it

A size that is left out is the model's image size. A size is a number or (height,
width). Interpolations: nearest, bilinear (half-pixel centres, no antialias, as
TensorFlow's), bicubic, area; bilinear_antialias and bicubic_antialias are Pillow's,
pixel by pixel, as timm and Hugging Face evaluate. Roundings, of the longer side in
resize_small (nearest if left out) and of the offset in central_crop (down if left
out): nearest (halves to the even number), down.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable

import numpy as np

from vit_jax.data.resizing import INTERPOLATIONS, Size, resize_image
from vit_jax.errors import UserError

ROUNDINGS: dict[str, Callable[[float], int]] = {"nearest": round, "down": math.floor}


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation with its arguments bound.

    Attributes:
      apply: (uint8 [h, w, c], random generator) → uint8 [h', w', c].
      output_size: size of its input (None = not known before the image is seen) →
        size of its output. Raises ValueError where the input is too small.
      random: whether it draws from the generator.
    """

    apply: Callable[[np.ndarray, np.random.Generator | None], np.ndarray]
    output_size: Callable[[Size | None], Size | None]
    random: bool = False


@dataclasses.dataclass(frozen=True)
class Chain:
    """Operations one after the other, ending at `image_size`. Made by `parse_chain`."""

    text: str
    image_size: Size
    steps: tuple[Step, ...]

    @property
    def random(self) -> bool:
        return any(step.random for step in self.steps)

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator | None = None, name: str = ""
    ) -> np.ndarray:
        """Transforms uint8 [h, w, c] to uint8 [*image_size, c].

        Args:
          image: the pixels.
          rng: needed when the chain is random.
          name: what to call the image in an error.

        Raises:
          UserError: the image is too small for a crop, or ends at another size.
        """
        for step in self.steps:
            try:
                step.output_size(image.shape[:2])
            except ValueError as error:
                raise UserError(
                    f"{name or 'image'}: {error} (in the chain {self.text!r})"
                ) from None
            image = step.apply(image, rng)
        if image.shape[:2] != self.image_size:
            raise UserError(
                f"{name or 'image'} is {_times(image.shape[:2])} after the chain "
                f"{self.text!r}, the model takes {_times(self.image_size)}. "
                "End the chain with 'resize' or 'central_crop'."
            )
        return np.ascontiguousarray(image)


@functools.lru_cache(maxsize=256)
def parse_chain(text: str, image_size: Size) -> Chain:
    """Reads a chain such as "resize_small(256)|central_crop".

    Args:
      text: operations joined by "|"; see OPERATIONS for names and arguments.
      image_size: (height, width) of the result, and the default of every size.

    Raises:
      UserError: an unknown operation, a wrong argument, or another size at the end.
    """
    parts = [part.strip() for part in text.split("|")] if text.strip() else []
    steps = tuple(_parse_step(part, text, image_size) for part in parts)
    size = None
    for part, step in zip(parts, steps, strict=True):
        try:
            size = step.output_size(size)
        except ValueError as error:
            raise UserError(f"{part!r} in the chain {text!r}: {error}") from None
    if size not in (None, image_size):
        raise UserError(
            f"the chain {text!r} makes images of {_times(size)}, the model takes "
            f"{_times(image_size)}. Leave the size out of its last operation."
        )
    return Chain(text, image_size, steps)


def rescale_chain(text: str, old: Size, new: Size) -> str:
    """The chain for images of another size: its explicit sizes change in proportion.

    What the chain does to an image relative to the model's size stays as it is.

    Args:
      text: a chain that suits `old`.
      old: (height, width) that it ends at.
      new: (height, width) that the result ends at.
    """
    if old == new or not text.strip():
        return text
    return "|".join(_rescaled(part.strip(), old, new) for part in text.split("|"))


def inception_box(
    size: Size,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws a box: (top, left, height, width).

    As TensorFlow's sample_distorted_bounding_box without objects: the aspect (width
    over height) is uniform, then the height is uniform among those that keep the area,
    as a fraction of the image's, within bounds and the box inside the image. What does
    not fit is drawn again, 100 times at most; then the box is the whole image.
    """
    height, width = size
    least, most = (fraction * height * width for fraction in area)
    for _ in range(100):
        ratio = rng.uniform(*aspect)
        shortest = max(1, int(np.ceil(np.sqrt(least / ratio))))
        tallest = int(min(np.sqrt(most / ratio), (width + 0.5) / ratio, height))
        if shortest > tallest:
            continue
        box_height = int(rng.integers(shortest, tallest, endpoint=True))
        box_width = round(box_height * ratio)
        fits = 1 <= box_width <= width
        if not fits or not least <= box_height * box_width <= most:
            continue
        top = int(rng.integers(0, height - box_height, endpoint=True))
        left = int(rng.integers(0, width - box_width, endpoint=True))
        return top, left, box_height, box_width
    return 0, 0, height, width


def _inception_crop(
    size,
    area_min=0.05,
    area_max=1.0,
    aspect_min=0.75,
    aspect_max=1.33,
    interpolation="bilinear",
) -> Step:
    size = _size(size)
    area = _bounds("area", area_min, area_max)
    if area[1] > 1:
        raise ValueError(f"area_max={area_max} is a fraction of the image: 1 at most")
    aspect = _bounds("aspect", aspect_min, aspect_max)
    _check("interpolation", interpolation, INTERPOLATIONS)

    def apply(image, rng):
        top, left, height, width = inception_box(image.shape[:2], rng, area, aspect)
        box = image[top : top + height, left : left + width]
        return resize_image(np.ascontiguousarray(box), size, interpolation)

    return Step(apply, lambda _: size, random=True)


def _random_crop(size) -> Step:
    size = _size(size)

    def apply(image, rng):
        top, left = (
            int(rng.integers(0, have - want, endpoint=True))
            for have, want in zip(image.shape[:2], size, strict=True)
        )
        return image[top : top + size[0], left : left + size[1]]

    return Step(apply, functools.partial(_cropped, size), random=True)


def _central_crop(size, rounding="down") -> Step:
    size = _size(size)
    _check("rounding", rounding, ROUNDINGS)

    def apply(image, _):
        top, left = (
            ROUNDINGS[rounding]((have - want) / 2)
            for have, want in zip(image.shape[:2], size, strict=True)
        )
        return image[top : top + size[0], left : left + size[1]]

    return Step(apply, functools.partial(_cropped, size))


def _resize(size, interpolation="bilinear") -> Step:
    size = _size(size)
    _check("interpolation", interpolation, INTERPOLATIONS)
    return Step(
        lambda image, _: resize_image(image, size, interpolation), lambda _: size
    )


def _resize_small(size, interpolation="area", rounding="nearest") -> Step:
    # The smallest image of the same aspect that covers `size`: for a single number
    # the shorter side becomes that number.
    size = _size(size)
    _check("interpolation", interpolation, INTERPOLATIONS)
    _check("rounding", rounding, ROUNDINGS)

    def covering(have: Size) -> Size:
        # Multiplied before it is divided: what comes out whole must not be rounded.
        whole = ROUNDINGS[rounding]
        height = max(size[0], whole(size[1] * have[0] / have[1]))
        width = max(size[1], whole(size[0] * have[1] / have[0]))
        return height, width

    return Step(
        lambda image, _: resize_image(image, covering(image.shape[:2]), interpolation),
        lambda have: have and covering(have),
    )


def _flip_lr() -> Step:
    def apply(image, rng):
        return image[:, ::-1] if rng.random() < 0.5 else image

    return Step(apply, lambda size: size, random=True)


OPERATIONS: dict[str, Callable[..., Step]] = {
    "inception_crop": _inception_crop,
    "random_crop": _random_crop,
    "central_crop": _central_crop,
    "resize": _resize,
    "resize_small": _resize_small,
    "flip_lr": _flip_lr,
}


def _parse_step(part: str, text: str, image_size: Size) -> Step:
    where = f"{part!r} in the chain {text!r}"
    try:
        tree = ast.parse(part, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name):
            raise SyntaxError
        name = call.func.id
        arguments = [ast.literal_eval(value) for value in call.args]
        # An argument without a name here is one written "**".
        named = {str(key.arg): ast.literal_eval(key.value) for key in call.keywords}
    except (SyntaxError, ValueError):
        raise UserError(
            f"{where} cannot be read; expected operations such as 'resize(256)' "
            "joined by '|'"
        ) from None
    if name not in OPERATIONS:
        raise UserError(f"{where}: {_unknown('operation', name, OPERATIONS)}")
    operation = OPERATIONS[name]
    signature = inspect.signature(operation)
    try:
        bound = signature.bind_partial(*arguments, **named)
    except TypeError as error:
        raise UserError(
            f"{where}: {error}; it takes {', '.join(signature.parameters) or 'nothing'}"
        ) from None
    if "size" in signature.parameters:
        bound.arguments.setdefault("size", image_size)
    try:
        return operation(**bound.arguments)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _rescaled(part: str, old: Size, new: Size) -> str:
    """One operation, with its size changed in proportion if it has one."""
    call = ast.parse(part, mode="eval").body
    if not isinstance(call, ast.Call):
        return part
    named = [key for key in call.keywords if key.arg == "size"]
    values = named or call.args[:1]
    if not values:
        return part
    value = named[0].value if named else call.args[0]
    sides = [
        round(side * after / before)
        for side, before, after in zip(
            _size(ast.literal_eval(value)), old, new, strict=True
        )
    ]
    scaled = ast.parse(repr(sides[0] if len(set(sides)) == 1 else tuple(sides)))
    changed = scaled.body[0].value  # type: ignore[attr-defined]
    if named:
        named[0].value = changed
    else:
        call.args[0] = changed
    return ast.unparse(call)


def _size(value) -> Size:
    pair = (value, value) if not isinstance(value, (tuple, list)) else tuple(value)
    whole = [isinstance(side, int) and not isinstance(side, bool) for side in pair]
    if len(pair) != 2 or not all(whole) or min(pair) < 1:
        raise ValueError(
            f"the size must be a number of pixels or (height, width), not {value!r}"
        )
    return pair


def _bounds(name: str, low, high) -> tuple[float, float]:
    numbers = all(
        isinstance(bound, (int, float)) and not isinstance(bound, bool)
        for bound in (low, high)
    )
    if not numbers or not 0 < low <= high:
        raise ValueError(
            f"{name}_min={low!r} and {name}_max={high!r} must be numbers with "
            f"0 < {name}_min ≤ {name}_max"
        )
    return low, high


def _check(kind: str, name, known: Iterable[str]) -> None:
    if name not in tuple(known):  # a list, say, is no key
        raise ValueError(_unknown(kind, name, known))


def _unknown(kind: str, name, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {kind} {name!r}.{hint} There are: {', '.join(known)}."


def _cropped(size: Size, have: Size | None) -> Size:
    if have is not None and (have[0] < size[0] or have[1] < size[1]):
        raise ValueError(
            f"cannot cut {_times(size)} out of {_times(have)}; resize first, for "
            "example with 'resize_small'"
        )
    return size


def _times(size: Size) -> str:
    return f"{size[0]}×{size[1]}"
