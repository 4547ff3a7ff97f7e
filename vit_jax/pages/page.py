"""A page: sections of text, tables, pictures and plots, rendered as one HTML file."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.pages.pictures import data_uri


class Figure(NamedTuple):
    """A picture or plot with its caption.

    Attributes:
      caption: below it; also the text for those who do not see it.
      source: address of a picture, which contains it (`pictures.data_uri`).
      svg: a plot of `plots`, instead of a picture.
      width: in pixels on the screen, at most; 0 = that of its content.
    """

    caption: str
    source: str = ""
    svg: str = ""
    width: int = 0


def picture(
    array: Any, caption: str, *, width: int = 0, kind: str = "png", quality: int = 85
) -> Figure:
    """Makes the figure of a uint8 picture [h, w, 3].

    Args:
      array: the picture.
      caption: see `Figure`.
      width: see `Figure`; by default the picture's own.
      kind: "png", or "jpeg" for photographs.
      quality: of a JPEG.
    """
    width = width or np.shape(array)[1]
    return Figure(caption, data_uri(array, kind, quality), width=width)


def plot(svg: str, caption: str, width: int = 500) -> Figure:
    """Makes the figure of a plot of `plots`; `width` is in pixels on the screen."""
    return Figure(caption, svg=svg, width=width)


class Block(NamedTuple):
    """A part of a section; its kind says which fields it has."""

    kind: str
    text: str = ""
    header: Sequence[Any] = ()
    rows: Sequence[Sequence[Any]] = ()
    figures: Sequence[Figure] = ()


@dataclasses.dataclass
class Section:
    """A part of a page under a heading."""

    title: str
    blocks: list[Block] = dataclasses.field(default_factory=list)

    def text(self, text: str) -> "Section":
        """Adds a paragraph."""
        self.blocks.append(Block("text", text))
        return self

    def code(self, text: str) -> "Section":
        """Adds commands, as they are."""
        self.blocks.append(Block("code", text))
        return self

    def table(
        self, rows: Iterable[Sequence[Any]], header: Sequence[Any] = ()
    ) -> "Section":
        """Adds a table; cells are written as text."""
        self.blocks.append(Block("table", header=header, rows=[*rows]))
        return self

    def figures(self, *figures: Figure) -> "Section":
        """Adds figures beside each other, as many as there is room for."""
        if figures:
            self.blocks.append(Block("figures", figures=figures))
        return self


@dataclasses.dataclass
class Page:
    """A page that opens without a network.

    Attributes:
      title: its heading.
      texts: paragraphs below it.
      sections: its parts, in order; with more than two, links to them come first.
    """

    title: str
    texts: list[str] = dataclasses.field(default_factory=list)
    sections: list[Section] = dataclasses.field(default_factory=list)

    def section(self, title: str) -> Section:
        """Adds a section."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def html(self) -> str:
        """Renders the page; all of its texts are escaped."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("vit_jax.pages"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
        )
        return environment.get_template("page.html").render(page=self)
