"""Reading and writing of Hugging Face's preprocessor_config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.weights.formats.companion import (
    COUNT,
    FACTOR,
    FLAG,
    NUMBERS,
    PAIR,
    TABLE,
    TEXT,
    Kind,
    entry,
    one_a_channel,
)
from vit_jax.weights.formats.geometry import (
    Geometry,
    difference,
    from_chain,
    to_chain,
    usual_spelling,
)
from vit_jax.weights.formats.huggingface_families import Family
from vit_jax.weights.formats.layout import Hints
from vit_jax.words import pair, times

# Numbers of PIL's filters → our names; the last two are the nearest that we have.
_FILTERS = {
    0: "nearest",
    2: "bilinear_antialias",
    3: "bicubic_antialias",
    4: "area",
    1: "bicubic_antialias",
    5: "bilinear_antialias",
}
# Ours → PIL's. PIL always uses antialiasing; `lost` reports the difference.
_WRITTEN_FILTERS = {ours: number for number, ours in reversed(_FILTERS.items())} | {
    "bilinear": 2,
    "bicubic": 3,
}
_FILTER = Kind(
    lambda value: type(value) is int and value in _FILTERS,
    "the number of a filter, 0 to 5",
)
_SIZE = Kind(
    lambda value: PAIR.holds(value) or TABLE.holds(value),
    "a number of pixels, or an object with height and width or with shortest_edge",
)
# Processors for which a single number as size means the shorter edge.
_SHORTEST = ("CLIP", "Bit", "ConvNext", "LeViT")
# Processors whose default filter is bicubic.
_BICUBIC = ("DeiT", "Bit", "Siglip")


def read_preprocessing(
    hints: Hints, architecture: Architecture, family: Family
) -> tuple[Preprocessing, list[str]]:
    """Reads the preprocessing from preprocessor_config.json, for the model's size.

    Also returns one sentence per assumption.
    """
    a, told = architecture, hints.preprocessor
    if hints.preprocessing is not None:
        replaced = dataclasses.replace(
            hints.preprocessing, image_size=a.image_size, channels=a.channels
        )
        return replaced, []
    if not told:
        return _usual(a, family)
    chain, assumed = _chain(told, a.image_size, family)
    # A processor scales by its factor before it normalises. Ours scales by 1 / 255, so
    # mean and std are converted.
    factor = 1.0
    if entry(told, "do_rescale", FLAG, True):
        factor = float(entry(told, "rescale_factor", FACTOR, 1 / 255))
    mean, std = (0.0,), (1.0,)
    if entry(told, "do_normalize", FLAG, True):
        mean = entry(told, "image_mean", NUMBERS, family.values[0])
        std = entry(told, "image_std", NUMBERS, family.values[1])
    mean, std = (
        tuple(value / (255 * factor) for value in one_a_channel(values, a.channels))
        for values in (mean, std)
    )
    return Preprocessing(a.image_size, a.channels, chain, mean, std), assumed


def lost_about_images(preprocessing: Preprocessing, family: Family) -> list[str]:
    """Lists sentences about what transformers does differently to images."""
    p = preprocessing
    chain, _ = _chain(write_processor(p, family), p.image_size, family)
    if chain == usual_spelling(p):
        return []
    return [
        f"transformers will preprocess images with {chain!r}, where this model was "
        f"evaluated with {p.eval_transform!r} ({difference(chain, p)}): expect "
        "slightly different predictions"
    ]


def write_processor(preprocessing: Preprocessing, family: Family) -> dict[str, Any]:
    """Makes the content of preprocessor_config.json."""
    p = preprocessing
    geometry = from_chain(p) or Geometry(False, p.image_size, "bilinear_antialias")
    if geometry.keeps_aspect and geometry.size[0] != geometry.size[1]:
        # shortest_edge alone could make an image smaller than the crop, which would
        # then be padded with black.
        geometry = Geometry(False, p.image_size, geometry.interpolation)
    crops = geometry.keeps_aspect or geometry.size != p.image_size
    height, width = geometry.size
    # These processors read all keys below; older versions accepted different ones.
    resizes, crops_too, keeps = family.processors
    kind = crops_too if crops else resizes
    size: dict[str, int] = {"height": height, "width": width}
    if geometry.keeps_aspect:
        kind, size = keeps, {"shortest_edge": min(geometry.size)}
    config = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": _WRITTEN_FILTERS[geometry.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
    }
    if crops:
        height, width = p.image_size
        config |= {
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
    return config


def _chain(
    told: Mapping[str, Any], image_size: tuple[int, int], family: Family
) -> tuple[str, list[str]]:
    """Converts a processor to a chain of operations; also lists assumptions."""
    kind = entry(told, "image_processor_type", TEXT, "") or entry(
        told, "feature_extractor_type", TEXT, ""
    )
    keeps, size = _size(entry(told, "size", _SIZE, list(image_size)), kind)
    number = entry(told, "resample", _FILTER, 3 if kind.startswith(_BICUBIC) else 2)
    interpolation = _FILTERS[number]
    crop = None
    if entry(told, "do_center_crop", FLAG, "crop_size" in told):
        _, crop = _size(entry(told, "crop_size", _SIZE, list(image_size)), "")
    if not entry(told, "do_resize", FLAG, True):
        return "central_crop" if crop else "", []
    final = crop or size
    if crop and crop != image_size and family.scaled:
        # The crop's margin stays the same in proportion.
        height, width = (
            round(old * new / cut)
            for old, new, cut in zip(size, image_size, crop, strict=True)
        )
        geometry = Geometry(keeps, (height, width), interpolation, side_rounding="down")
        return to_chain(geometry, image_size), []
    if final != image_size or (keeps and not crop):
        chain = to_chain(Geometry(False, image_size, interpolation), image_size)
        return chain, [
            f"preprocessor_config.json makes images of {times(final)}"
            f"{' or larger' if keeps and not crop else ''}, but the model takes "
            f"{times(image_size)}: assumed {chain!r}"
        ]
    assumed = []
    if number in (1, 5):
        assumed.append(
            f"the filter {number} (resample) is not supported: assumed {interpolation}"
        )
    geometry = Geometry(keeps, size, interpolation, side_rounding="down")
    return to_chain(geometry, image_size), assumed


def _size(value: Any, kind: str) -> tuple[bool, tuple[int, int]]:
    """Reads whether the aspect ratio is kept, and (height, width)."""
    if isinstance(value, Mapping):
        shortest = entry(value, "shortest_edge", COUNT)
        if shortest:
            return True, (shortest, shortest)
        height, width = (entry(value, side, COUNT) for side in ("height", "width"))
        if not height or not width:
            raise UserError(
                f"a size in preprocessor_config.json is {dict(value)!r}, expected "
                f"{_SIZE.words}: correct it, or remove the file"
            )
        return False, (height, width)
    keeps = isinstance(value, int) and kind.startswith(_SHORTEST)
    return keeps, pair(value)


def _usual(a: Architecture, family: Family) -> tuple[Preprocessing, list[str]]:
    """Returns the preprocessing of the family's released models, as an assumption."""
    mean, std = family.values
    keeps, (resized, cut), interpolation = family.geometry
    height, width = (size * resized // cut for size in a.image_size)
    geometry = Geometry(keeps, (height, width), interpolation, side_rounding="down")
    preprocessing = Preprocessing(
        a.image_size,
        a.channels,
        to_chain(geometry, a.image_size),
        one_a_channel(mean, a.channels),
        one_a_channel(std, a.channels),
    )
    return preprocessing, [
        "there is no preprocessor_config.json: assumed mean "
        f"{preprocessing.mean}, standard deviation {preprocessing.std} and "
        f"{preprocessing.eval_transform!r}"
    ]
