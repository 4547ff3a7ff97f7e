"""Multi-crop: several large and small random views of each image, as batch columns.

These are the views of SwAV and DINO (arXiv:2104.14294, §3.1): two of the model's image
size and a number of smaller ones, each a column of its own with its own random draws.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vit_jax.config import default_config
from vit_jax.data.transforms.chains import parse_chain
from vit_jax.errors import UserError
from vit_jax.named import is_number
from vit_jax.objectives.protocol import Given, Images
from vit_jax.words import pair, times

_COLOURS = "flip_lr|color_jitter(0.4, 0.4, 0.2, 0.1, prob=0.8)|grey(prob=0.2)"
# Name of the option → what follows DINO's crop.
_CHAINS = {
    "first_chain": f"{_COLOURS}|blur",
    "second_chain": f"{_COLOURS}|blur(prob=0.1)|solarize(prob=0.2)",
    "local_chain": f"{_COLOURS}|blur(prob=0.5)",
}


class CropOptions(NamedTuple):
    """The options of an objective that decide its views.

    Attributes:
      global_crops_scale: smallest and largest share of the image in a large view.
      local_crops_number: number of small views.
      local_crops_scale: smallest and largest share of the image in a small view.
      local_crops_size: side or (height, width) of a small view in pixels; 0 = 3/7 of
        the image size to the nearest multiple of the patch, which is 96 for 224.
      first_chain, second_chain, local_chain: operations that make the first and the
        second large view and a small one; "" = DINO's with the scales above.
    """

    global_crops_scale: Sequence[float | int]
    local_crops_number: int
    local_crops_scale: Sequence[float | int]
    local_crops_size: Any
    first_chain: str
    second_chain: str
    local_chain: str


class MultiCrop(NamedTuple):
    """The views of each image.

    Attributes:
      large: names of the columns of the two large views.
      small: names of the columns of the small views.
      inputs: all columns.
    """

    large: tuple[str, ...]
    small: tuple[str, ...]
    inputs: dict[str, Images]


def make_multi_crop(
    given: Given, options: CropOptions, problems: list[str]
) -> MultiCrop:
    """Makes the views of an objective.

    A key `augment.train` other than its default makes both large views, unless an
    option has their chains.

    Args:
      given: the run; its model has patches.
      options: the objective's.
      problems: receives a line for each option that is impossible; the result is then
        of no use.
    """
    found: list[str] = []
    size = _local_size(given, options.local_crops_size, found)
    number = options.local_crops_number
    if number < 0:
        found.append(
            f"local_crops_number={number!r}: give the number of small views, 0 or more"
        )
        number = 0
    made = {}
    for name, text in _chains(given, options, found).items():
        shape = size if name == "local_chain" else given.architecture.image_size
        try:
            chain = parse_chain(text, shape)
        except UserError as error:
            found.append(f"{name}: {error}")
            chain = parse_chain("resize", shape)
        made[name] = Images(chain, given.architecture.channels)
    problems += [f"objective_options.{line}" for line in found]
    large, small = (
        tuple(f"{kind}_{i}" for i in range(count))
        for kind, count in (("global", 2), ("local", number))
    )
    views = [made["first_chain"], made["second_chain"], *[made["local_chain"]] * number]
    return MultiCrop(large, small, dict(zip((*large, *small), views, strict=True)))


def _local_size(given: Given, value: Any, problems: list[str]) -> tuple[int, int]:
    """Returns (height, width) of the small views."""
    image, patch = given.architecture.image_size, given.architecture.patch_size
    if value == 0:
        height, width = (
            max(round(side * 3 / 7 / p), 1) * p
            for side, p in zip(image, patch, strict=True)
        )
        return height, width
    try:
        size = pair(value)
    except (TypeError, ValueError):
        size = (0, 0)
    if any(s < p or s % p for s, p in zip(size, patch, strict=True)):
        problems.append(
            f"local_crops_size={value!r}: small views are cut into patches of "
            f"{times(patch)} pixels, so their sides must be multiples of it, at least "
            f"one patch; give such as {_nearest(size, patch)}, or 0 for about 3/7 of "
            f"{times(image)}"
        )
        return patch
    return size


def _nearest(size: tuple[int, int], patch: tuple[int, int]) -> str:
    sides = [max(round(s / p), 1) * p for s, p in zip(size, patch, strict=True)]
    return str(sides[0]) if len(set(sides)) == 1 else str(tuple(sides))


def _chains(given: Given, options: CropOptions, problems: list[str]) -> dict[str, str]:
    """Returns the chain of each kind of view, by the name of its option."""
    scales = {}
    for name in ("global_crops_scale", "local_crops_scale"):
        value = getattr(options, name)
        scales[name] = value if _is_scale(value) else (0.5, 1.0)
        if not _is_scale(value):
            problems.append(
                f"{name}={value!r}: give the smallest and the largest share of the "
                "image, two numbers above 0 and at most 1, such as (0.4, 1.0)"
            )
    own = given.config.augment.train
    own = "" if own == default_config().augment.train else own
    chains = {}
    for name, rest in _CHAINS.items():
        kind = "local_crops_scale" if name == "local_chain" else "global_crops_scale"
        low, high = map(float, scales[kind])
        crop = f"random_resized_crop(area_min={low}, area_max={high})"
        others = getattr(options, name), own * (name != "local_chain")
        chains[name] = next(filter(None, others), f"{crop}|{rest}")
    if own and options.first_chain and options.second_chain:
        problems.append(
            "first_chain and second_chain replace augment.train: leave it at its "
            "default, or give only one of them"
        )
    return chains


def _is_scale(value: Any) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    return all(map(is_number, value)) and 0 < value[0] <= value[1] <= 1
