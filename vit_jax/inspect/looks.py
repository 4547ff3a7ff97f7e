"""The page that the command writes: each image in one model, or in two."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from vit_jax.inspect.findings import Findings
from vit_jax.inspect.maps import MAPS
from vit_jax.model import Model
from vit_jax.models.outputs import is_probability
from vit_jax.pages.page import Figure, Page, Section, picture, plot
from vit_jax.pages.pictures import coloured, enlarged, overlaid, side_by_side
from vit_jax.pages.plots import heads
from vit_jax.words import times

Pixels = UInt8[np.ndarray, "h w c"]

_SIDE = 224  # pixels of a picture on the page
_SMALL = 112  # of one of many
_COLUMNS = 8
_BEST = 3  # classes that the lens names


class Looked(NamedTuple):
    """An image as a model saw it, and what was found.

    Attributes:
      label: the model's name on the page; "" if there is only one.
      model: the model.
      pixels: what it read, uint8 before normalisation.
      findings: what was found.
      target: what class-specific maps are of, in words.
    """

    label: str
    model: Model
    pixels: Pixels
    findings: Findings
    target: str


def begin_page(models: Sequence[tuple[str, Model]]) -> Page:
    """Makes a page that introduces the models: label, which may be "", and model."""
    page = Page("A look inside")
    for label, model in models:
        page.texts.append(f"{label}: {model!r}" if label else repr(model))
    page.texts.append(
        "Maps are on the grid of patches, each scaled to its own smallest and largest "
        "value. A class-agnostic map would be the same whatever class was asked for. "
        "None of the maps is an explanation of an output."
    )
    return page


def add_summary(page: Page, findings: Sequence[tuple[str, Sequence[Findings]]]) -> None:
    """Puts a section about attention over all images before those about each.

    Args:
      page: the page.
      findings: for each model its label and what was found in all images.
    """
    section = Section("Over all images")
    for label, found in findings:
        distances = [x.distances for x in found if x.distances is not None]
        entropies = [x.entropies for x in found if x.entropies is not None]
        if not distances:
            continue
        if label:
            section.text(f"{label}:")
        reach, spread = np.mean(distances, axis=0), np.mean(entropies, axis=0)
        section.figures(
            plot(
                heads(reach, title="Attention distance", y="pixels"),
                "How far patches look (arXiv:2010.11929, figure 7): a dot for each "
                "head, mean over images and patches.",
            ),
            plot(
                heads(spread, title="Attention entropy", y="nats"),
                "How evenly attention is spread: 0 where a token reads one other.",
            ),
        )
    if section.blocks:
        page.sections.insert(0, section)


def add_image(page: Page, name: str, looks: Sequence[Looked]) -> None:
    """Adds a section with everything about one image."""
    section = page.section(name)
    for look in looks:
        if look.label:
            section.text(f"{look.label}:")
        _add_maps(section, look)
        _add_layers(section, look)
        if look.findings.lens is not None:
            _add_lens(section, look)


def shown(pixels: Pixels, side: int = _SIDE) -> UInt8[np.ndarray, "h w 3"]:
    """Makes a picture of a model's input: grey for one channel, else the first three.

    Args:
      pixels: uint8 values, before normalisation.
      side: the longer side of the picture, in pixels.
    """
    chosen = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., [0, 0, 0]]
    scale = side / max(pixels.shape[:2])
    size = tuple(max(1, round(scale * n)) for n in pixels.shape[:2])
    return enlarged(np.ascontiguousarray(chosen), (size[0], size[1]), "bilinear")


def overlays(look: Looked) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Returns the picture of each map over the image, by the map's name."""
    image = shown(look.pixels)
    return {name: overlaid(image, x) for name, x in look.findings.maps.items()}


def _add_maps(section: Section, look: Looked) -> None:
    image = shown(look.pixels)
    size = times((*look.pixels.shape[:2][::-1],))
    grid = times(look.model.architecture.grid[::-1])
    figures = [picture(image, f"What the model reads: {size} pixels, {grid} patches")]
    for name, over in overlays(look).items():
        row = MAPS[name]
        of = f" Of {look.target}." if row.class_specific else ""
        figures.append(picture(over, f"{row.title}. {row.caption}{of}", kind="jpeg"))
    section.figures(*figures)
    for name, reason in look.findings.refused.items():
        section.text(f"{MAPS[name].title}: {reason}")


def _add_layers(section: Section, look: Looked) -> None:
    found = look.findings
    groups = [
        (found.heads, "Attention of the last layer, from head 0 on; class-agnostic"),
        (found.layers, "Attention from layer 0 on, mean over heads; class-agnostic"),
        (
            found.norms,
            "Norms of the patches' tokens after each block. Single patches far above "
            "all others carry no local content (arXiv:2309.16588)",
        ),
    ]
    section.figures(*(_mosaic(maps, text) for maps, text in groups if maps is not None))


def _mosaic(maps: Any, caption: str) -> Figure:
    """Makes one figure of several maps, row by row."""
    gh, gw = maps.shape[1:]
    scale = _SMALL / max(gh, gw)
    size = max(1, round(scale * gh)), max(1, round(scale * gw))
    pictures = [enlarged(coloured(values), size) for values in maps]
    whole = side_by_side(pictures, min(_COLUMNS, len(pictures)))
    return picture(whole, caption)


def _add_lens(section: Section, look: Looked) -> None:
    """Adds the largest outputs by layer, as the head reads the tokens there."""
    lens, model = look.findings.lens, look.model
    assert lens is not None
    names = model.class_names or [str(i) for i in range(lens.shape[1])]
    probable = is_probability(model.outputs)
    rows = []
    for layer, outputs in enumerate(lens):
        best = (
            np.argsort(-outputs, kind="stable")[:_BEST]
            if probable
            else range(min(_BEST, len(outputs)))
        )
        write = "{:.1%}" if probable else "{:.4g}"
        rows.append([layer, *(f"{names[i]} {write.format(outputs[i])}" for i in best)])
    rows[-1][0] = f"{len(rows) - 1}, the output"
    section.text(
        "The output if the model ended after each block (logit lens); its head has "
        "never seen the tokens of any but the last."
    ).table(rows, ["block"])
