"""An image's way through a model, as a table and as a drawing."""

import dataclasses
import html
import textwrap

from vit_jax.models import ViTOrMixer
from vit_jax.walkthrough.drawing import draw
from vit_jax.walkthrough.stages import Stage
from vit_jax.walkthrough.texts import amount, shape_text, with_unit
from vit_jax.words import times

_COLUMNS = 80
_HEADER = ("stage", "in", "out", "parameters", "FLOPs")


@dataclasses.dataclass(frozen=True)
class Walkthrough:
    """The stages of an image's way through a model; `print` shows them as a table.

    A notebook shows the drawing and the table with a sentence for each stage.

    Attributes:
      name: of the model.
      architecture: the function that the model computes.
      stages: see `Stage`; their parameters and FLOPs add up to the model's.
    """

    name: str
    architecture: ViTOrMixer
    stages: tuple[Stage, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def flops(self) -> int:
        """FLOPs per image from input to logits, 2 per term of a product."""
        return sum(stage.flops for stage in self.stages)

    @property
    def title(self) -> str:
        """The model, its image, and its totals in one line."""
        a = self.architecture
        return (
            f"{self.name}, image {times((*a.image_size, a.channels))}: "
            f"{self.parameters:,} parameters, {with_unit(self.flops)}"
        )

    def drawing(self) -> str:
        """Draws the stages as boxes and arrows; returns the text of an SVG file."""
        return draw(self.title, self.architecture.grid, self.stages)

    def __str__(self) -> str:
        rows = [_HEADER, *map(_row, self.stages)]
        total = ("in all", "", "", f"{self.parameters:,}", amount(self.flops))
        widths = [max(map(len, column)) for column in zip(*rows, total, strict=True)]
        lines = textwrap.wrap(self.title, _COLUMNS)
        lines.append(_line(_HEADER, widths))
        inside = False
        for stage, row in zip(self.stages, rows[1:], strict=True):
            if stage.in_block and not inside:
                lines.append(f"in each of {_blocks(stage)}, counted together:")
            inside = stage.in_block
            lines.append(_line(row, widths))
        return "\n".join([*lines, _line(total, widths)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Returns the drawing and the table, as notebooks show them."""
        head = "".join(f"<th>{name}</th>" for name in (*_HEADER, ""))
        rows = []
        inside = False
        for stage in self.stages:
            if stage.in_block and not inside:
                rows.append(
                    f'<tr><td colspan="6"><i>in each of {_blocks(stage)}, counted '
                    "together:</i></td></tr>"
                )
            inside = stage.in_block
            cells = (*_row(stage), stage.sentence)
            rows.append(
                "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>"
            )
        return (
            f"<div>{self.drawing()}</div><table><caption>{html.escape(self.title)}"
            f"</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )


def _row(stage: Stage) -> tuple[str, ...]:
    return (
        "  " * stage.in_block + stage.name,
        shape_text(stage.input),
        shape_text(stage.output),
        f"{stage.parameters:,}" if stage.parameters else "",
        amount(stage.flops) if stage.flops else "",
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Aligns text on the left and numbers on the right."""
    texts = [cell.ljust(width) for cell, width in zip(cells[:3], widths, strict=False)]
    texts += [c.rjust(width) for c, width in zip(cells[3:], widths[3:], strict=True)]
    return "  ".join(texts).rstrip()


def _blocks(stage: Stage) -> str:
    return f"{stage.repeats} blocks" if stage.repeats > 1 else "one block"
