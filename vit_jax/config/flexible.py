"""Checks of the keys of flexible patch sizes, `config.flexible`."""

from collections.abc import Iterable
from typing import Any

from vit_jax.config.keys import Config, default_config
from vit_jax.config.values import changed, image_size, is_default
from vit_jax.words import pair, times

Size = tuple[int, int]

_SIZES = ("patch_sizes", "eval_patch_sizes")


def size_name(size: Size) -> str:
    """Writes a patch size as part of a name: "16", or "16x8" for a rectangle."""
    height, width = size
    return f"{height}" if height == width else f"{height}x{width}"


def read_size(value: Any) -> Size | None:
    """Reads (height, width) from one side or both; None if it is not a size."""
    try:
        size = pair(value)
    except (TypeError, ValueError):
        return None
    return size if min(size) >= 1 else None


def not_dividing(sizes: Iterable[Size], image: Size) -> list[str]:
    """Says of each size that patches of it do not fill the image, with the nearest."""
    found = []
    for size in sizes:
        if any(side % patch for side, patch in zip(image, size, strict=True)):
            nearest = [
                _nearest(patch, side) for side, patch in zip(image, size, strict=True)
            ]
            below, above = zip(*nearest, strict=True)
            some = dict.fromkeys(map(size_name, (below, above)))
            found.append(f"{size_name(size)} (nearest: {' or '.join(some)})")
    return found


def wrong_flexible(config: Config, wrong: Iterable[str] = ()) -> list[str]:
    """Lists problems of the patch sizes, one line each.

    Args:
      config: the config.
      wrong: keys whose values are known to be invalid.
    """
    flexible, default = config.flexible, default_config().flexible
    if not flexible.patch_sizes:
        return [
            f"flexible.{key}={flexible[key]} without flexible.patch_sizes has no "
            f"effect; set flexible.patch_sizes, or leave it at {default[key]}"
            for key in flexible
            if not is_default(config, f"flexible.{key}")
        ]
    found = []
    for key in _SIZES:
        found += _wrong_sizes(config, key, sized="image_size" not in wrong)
    for key in ("kernel", "grid"):
        value = flexible[key]
        size = read_size(tuple(value))
        if size is None:
            found.append(
                f"flexible.{key}={value}: give one side or height,width, as in "
                f"--config.flexible.{key}={default[key][0]}"
            )
    found += _wrong_frequencies(config)
    if config.model.posemb != "learned":
        found += [
            f"flexible.{key}={flexible[key]} has no effect: positions of the kind "
            f"{config.model.posemb} are computed for every grid; leave it at "
            f"{default[key]}"
            for key in ("grid", "posemb_resize")
            if not is_default(config, f"flexible.{key}")
        ]
    return found


def readable_flexible(config: Config) -> Config:
    """Replaces what cannot be read, so that the rest of the config can be checked."""
    if not wrong_flexible(config):
        return config
    default, values = default_config().flexible, {}
    for key in _SIZES:
        readable = [size for size in map(read_size, config.flexible[key]) if size]
        values[key] = tuple(readable) if key == "patch_sizes" else ()
    for key in ("kernel", "grid"):
        found = read_size(tuple(config.flexible[key]))
        values[key] = found or default[key]
    values["frequencies"] = default.frequencies
    return changed(config, {f"flexible.{key}": x for key, x in values.items()})


def _wrong_sizes(config: Config, key: str, *, sized: bool) -> list[str]:
    values, found = config.flexible[key], []
    sizes = [size for size in map(read_size, values) if size is not None]
    if unread := [value for value in values if read_size(value) is None]:
        found.append(
            f"flexible.{key}: {', '.join(map(repr, unread))} cannot be a patch size; "
            "give sides in pixels or pairs (height, width), as in "
            f"--config.flexible.{key}=8,16,32 or =((16,8),(16,16))"
        )
    if twice := [size for size in dict.fromkeys(sizes) if sizes.count(size) > 1]:
        found.append(
            f"flexible.{key} has {', '.join(map(size_name, twice))} more than once; "
            "give each size once"
            + "; flexible.frequencies make some more frequent"
            * (key == "patch_sizes")
        )
    if sized:
        image = image_size(config)
        if lines := not_dividing(dict.fromkeys(sizes), image):
            found.append(
                f"flexible.{key}: images of {times(image)} pixels cannot be cut into "
                f"patches of {', '.join(lines)}"
            )
    return found


def _wrong_frequencies(config: Config) -> list[str]:
    flexible = config.flexible
    given, sizes = flexible.frequencies, flexible.patch_sizes
    if not given:
        return []
    if any(type(one) is not int or not 1 <= one < 2**31 for one in given):
        return [
            f"flexible.frequencies={given}: give whole numbers of at least 1, such as "
            f"{(1,) * len(sizes)}"
        ]
    if len(given) != len(sizes):
        return [
            f"flexible.frequencies has {len(given)} numbers, but flexible.patch_sizes "
            f"has {len(sizes)} sizes; give one for each, in the same order"
        ]
    return []


def _nearest(patch: int, side: int) -> tuple[int, int]:
    """Returns the nearest divisors of `side`, at most and at least `patch`."""
    divisors = [size for size in range(1, side + 1) if side % size == 0]
    below = max(size for size in divisors if size <= max(patch, 1))
    return below, min((size for size in divisors if size >= patch), default=below)
