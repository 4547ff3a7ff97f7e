"""Chains of image operations, written as text.

    "inception_crop|flip_lr"          training
    "resize"                          evaluation as in the published fine-tuning code
    "resize_small(256)|central_crop"  evaluation of most ImageNet models
    ""                                pixels as they are

A size is a number or (height, width); by default it is the model's image size.
Interpolations: nearest, bilinear (half-pixel centres without antialiasing, like
TensorFlow's), bicubic, area; bilinear_antialias and bicubic_antialias, which equal
Pillow's pixel by pixel, for evaluation like timm and Hugging Face. Roundings: nearest
(halves to the even number), down; resize_small rounds the longer side (default:
nearest), central_crop the offset (default: down).

Published training chains:

    ViT, SAM, GSAM       "inception_crop|flip_lr"
    AugReg               "inception_crop|flip_lr|randaugment(2, 15)" is its medium;
                         magnitude 0 is its light1, 10 light2, 20 strong
    big_vision, to 384   "resize_small(448)|random_crop|flip_lr" in transfer
    DeiT                 "random_resized_crop|flip_lr
                         |timm_randaugment('rand-m9-mstd0.5-inc1')"
    MAE                  "random_resized_crop(area_min=0.2)|flip_lr" in pretraining,
                         DeiT's in fine-tuning,
                         "random_resized_crop(retry=False)|flip_lr" in linear probing
    DeiT-III             "random_resized_crop|flip_lr|three_augment
                         |color_jitter(0.3, 0.3, 0.3)"
    with its simple crop "resize_small(interpolation='bicubic_antialias',
                         rounding='down')|random_crop(padding=4)|flip_lr
                         |three_augment|color_jitter(0.3, 0.3, 0.3)"
    DINO                 "random_resized_crop(area_min=0.4)|flip_lr
                         |color_jitter(0.4, 0.4, 0.2, 0.1, prob=0.8)|grey(prob=0.2)
                         |blur(prob=0.1)|solarize(prob=0.2)" for the second of its views
                         (vit_jax/objectives/multi_crop.py has all)

Published evaluation chains:

    Google's files       "resize"
    big_vision, to 224   "resize_small(256)|central_crop"
    big_vision, to 384   "resize_small(448)|central_crop"
    timm, to 224         "resize_small(248, 'bicubic_antialias', 'down')
                         |central_crop(rounding='nearest')"
    DeiT, MAE, DINOv2    "resize_small(256, 'bicubic_antialias', 'down')
                         |central_crop(rounding='nearest')" to 224
    DeiT-III, timm 384   "resize_small(interpolation='bicubic_antialias',
                         rounding='down')|central_crop(rounding='nearest')"
    ViT of Hugging Face  "resize(interpolation='bilinear_antialias')"
    DeiT of Hugging Face "resize(256, 'bicubic_antialias')|central_crop"

Operations on colours take grey (1 channel) and RGB images (3); crops, resizes and flips
take any number of channels.
"""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable

import numpy as np

from vit_jax.data.decode import Opened, UnsuitableImage, whole
from vit_jax.data.transforms.colour import (
    blur,
    color_jitter,
    grey,
    solarize,
    three_augment,
)
from vit_jax.data.transforms.crops import (
    central_crop,
    flip_lr,
    inception_crop,
    random_crop,
    random_resized_crop,
    resize,
    resize_small,
)
from vit_jax.data.transforms.operations import (
    Operation,
    read_size,
    unknown,
)
from vit_jax.data.transforms.randaugment import randaugment
from vit_jax.data.transforms.resizing import Size
from vit_jax.data.transforms.timm_randaugment import timm_randaugment
from vit_jax.errors import UserError
from vit_jax.words import times

OPERATIONS: dict[str, Callable[..., Operation]] = {
    "inception_crop": inception_crop,
    "random_resized_crop": random_resized_crop,
    "random_crop": random_crop,
    "central_crop": central_crop,
    "resize": resize,
    "resize_small": resize_small,
    "flip_lr": flip_lr,
    "randaugment": randaugment,
    "timm_randaugment": timm_randaugment,
    "three_augment": three_augment,
    "color_jitter": color_jitter,
    "grey": grey,
    "solarize": solarize,
    "blur": blur,
}


@dataclasses.dataclass(frozen=True)
class Chain:
    """A sequence of operations that ends at `image_size`; made by `parse_chain`."""

    text: str
    image_size: Size
    operations: tuple[Operation, ...]

    @property
    def random(self) -> bool:
        return any(operation.random for operation in self.operations)

    def __call__(
        self, image: Opened, rng: np.random.Generator | None = None, name: str = ""
    ) -> np.ndarray:
        """Transforms uint8 [h, w, c] to uint8 [*image_size, c].

        Args:
          image: pixels, or an image from `open_image`.
          rng: required if the chain is random.
          name: the image's name in error messages.

        Raises:
          UnsuitableImage: the image is too small for a crop, has a number of channels
            that an operation does not take, does not end at `image_size`, or makes an
            operation fail; the message names it.
          DecodeError: it cannot be decoded.
        """
        try:
            for operation in self.operations:
                operation.check(image)
                image = operation.apply(image if operation.cuts else whole(image), rng)
            image = whole(image)
        except UserError:
            raise
        except MemoryError as error:
            raise UserError(
                f"{name or 'image'}: there is not enough memory for the chain "
                f"{self.text!r}"
            ) from error
        except Exception as error:
            # A ValueError is a sentence of an operation's own.
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            reason = kind + " ".join(str(error).split())  # OpenCV's has several lines
            raise UnsuitableImage(
                f"{name or 'image'}: {reason} (in the chain {self.text!r})"
            ) from error
        if image.shape[:2] != self.image_size:
            raise UnsuitableImage(
                f"{name or 'image'} is {times(image.shape[:2])} after the chain "
                f"{self.text!r}, the model takes {times(self.image_size)}. "
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
      UserError: an operation is unknown, an argument is wrong, or the chain ends at
        another size.
    """
    parts = [part.strip() for part in text.split("|")] if text.strip() else []
    operations = tuple(_parse_operation(part, text, image_size) for part in parts)
    size = None
    for part, operation in zip(parts, operations, strict=True):
        try:
            size = operation.output_size(size)
        except ValueError as error:
            raise UserError(f"{part!r} in the chain {text!r}: {error}") from None
    if size not in (None, image_size):
        raise UserError(
            f"the chain {text!r} makes images of {times(size)}, the model takes "
            f"{times(image_size)}. Leave the size out of its last operation."
        )
    return Chain(text, image_size, operations)


def rescale_chain(text: str, old: Size, new: Size) -> str:
    """Adapts a chain to another image size: explicit sizes change in proportion.

    Relative to the model's image size, the chain does the same as before.

    Args:
      text: a chain that ends at `old`.
      old: (height, width).
      new: (height, width) that the returned chain ends at.
    """
    if old == new or not text.strip():
        return text
    return "|".join(_rescaled(part.strip(), old, new) for part in text.split("|"))


def with_first_boxes(text: str) -> str:
    """Rewrites a chain so that it draws the boxes of version 0.2.

    Runs that those began continue with it; see `crops.inception_box`.
    """
    parts = []
    for part in text.split("|"):
        call = ast.parse(part.strip() or "''", mode="eval").body
        name = call.func if isinstance(call, ast.Call) else call
        if isinstance(name, ast.Name) and name.id == "inception_crop":
            given = call if isinstance(call, ast.Call) else ast.Call(name, [], [])
            if "rounded" not in {key.arg for key in given.keywords}:
                given.keywords.append(ast.keyword("rounded", ast.Constant(False)))
            part = ast.unparse(given)
        parts.append(part)
    return "|".join(parts)


def _parse_operation(part: str, text: str, image_size: Size) -> Operation:
    where = f"{part!r} in the chain {text!r}"
    try:
        tree = ast.parse(part, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name):
            raise SyntaxError
        name = call.func.id
        arguments = [ast.literal_eval(value) for value in call.args]
        # A keyword without a name is an argument written with "**".
        named = {str(key.arg): ast.literal_eval(key.value) for key in call.keywords}
    except (SyntaxError, ValueError):
        raise UserError(
            f"{where} cannot be read; expected operations such as 'resize(256)' "
            "joined by '|'"
        ) from None
    if name not in OPERATIONS:
        raise UserError(f"{where}: {unknown('operation', name, OPERATIONS)}")
    operation = OPERATIONS[name]
    signature = inspect.signature(operation)
    try:
        bound = signature.bind_partial(*arguments, **named)
        if "size" in signature.parameters:
            bound.arguments.setdefault("size", image_size)
        bound = signature.bind(*bound.args, **bound.kwargs)
    except TypeError as error:
        raise UserError(
            f"{where}: {error}; it takes {', '.join(signature.parameters) or 'nothing'}"
        ) from None
    try:
        return operation(**bound.arguments)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _rescaled(part: str, old: Size, new: Size) -> str:
    """Rewrites one operation with its size, if it has one, changed in proportion."""
    call = ast.parse(part, mode="eval").body
    if not isinstance(call, ast.Call):
        return part
    name = call.func.id  # type: ignore[attr-defined]
    if "size" not in inspect.signature(OPERATIONS[name]).parameters:
        return part
    named = [key for key in call.keywords if key.arg == "size"]
    values = named or call.args[:1]
    if not values:
        return part
    value = named[0].value if named else call.args[0]
    sides = [
        round(side * after / before)
        for side, before, after in zip(
            read_size(ast.literal_eval(value)), old, new, strict=True
        )
    ]
    scaled = ast.parse(repr(sides[0] if len(set(sides)) == 1 else tuple(sides)))
    changed = scaled.body[0].value  # type: ignore[attr-defined]
    if named:
        named[0].value = changed
    else:
        call.args[0] = changed
    return ast.unparse(call)
