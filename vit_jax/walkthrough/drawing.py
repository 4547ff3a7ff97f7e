"""A drawing of a model's stages as an SVG file: boxes and arrows."""

import html
from collections.abc import Sequence

from vit_jax.walkthrough.stages import Stage
from vit_jax.walkthrough.texts import shape_text, with_unit

# Pixels.
_WIDTH, _MARGIN = 760, 16
_BOX_X, _BOX_WIDTH, _BOX_HEIGHT = 40, 360, 40
_ARROW = 30  # between two boxes
_PICTURE = 112  # longer side of the image with its grid
_BARS_X, _BARS_WIDTH = 500, 220
_FRAME = 20  # from the stages of a block to the frame around them
_SKIP = 10  # from these stages to the line that leads past them

_STYLE = (
    "text{font-family:Helvetica,Arial,sans-serif;font-size:12px;fill:#222}"
    ".name{font-weight:bold}.small{font-size:11px;fill:#555}"
    ".box{fill:#eef3fa;stroke:#4a6fa5}.frame{fill:none;stroke:#999;"
    "stroke-dasharray:5 3}.line{stroke:#444;fill:none}.head{fill:#444}"
    ".sum{fill:#fff;stroke:#444}.parameters{fill:#4a6fa5}.flops{fill:#d08c3f}"
)


def draw(title: str, grid: tuple[int, int], stages: Sequence[Stage]) -> str:
    """Draws stages from top to bottom; returns the text of an SVG file.

    A box has a stage's name, parameters and FLOPs; an arrow has the shape of what
    passes; bars show the shares of all parameters and of all FLOPs.

    Args:
      title: the text above the drawing.
      grid: (height, width) of the patches, drawn on the image.
      stages: the stages in their order.
    """
    y = _MARGIN + 14
    parts = [_text(_MARGIN, y, title, "name"), _legend(y + 20)]
    y += 36
    picture, y = _picture(y, stages[0].input, grid)
    parts.append(picture)
    sums = sum(s.parameters for s in stages), sum(s.flops for s in stages)
    top, inside = 0.0, False  # of the frame; whether the last stage was in it
    tops: dict[str, float] = {}
    for stage in stages:
        start = y
        if inside and not stage.in_block:
            y += _FRAME
            parts.append(_frame(top, y, stages))
        label = y
        if stage.in_block and not inside:
            y += _ARROW
            top = y - 4
        inside = stage.in_block
        y += _ARROW
        parts.append(_arrow(start, y, label, shape_text(stage.input)))
        parts += [_box(y, stage), _bars(y, stage, sums)]
        tops[stage.name] = y
        y += _BOX_HEIGHT
        if stage.adds_input_of:
            parts.append(_skip(tops[stage.adds_input_of], y))
    if inside:
        y += _FRAME
        parts.append(_frame(top, y, stages))
    parts.append(
        _arrow(y - _FRAME * inside, y + _ARROW, y, shape_text(stages[-1].output))
    )
    height = y + _ARROW + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def _rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
        f'class="{kind}"/>'
    )


def _legend(y: float) -> str:
    """Explains the bars."""
    half = _BARS_WIDTH / 2
    return (
        _rectangle(_BARS_X, y - 9, 10, 10, "parameters")
        + _text(_BARS_X + 15, y, "of all parameters", "small")
        + _rectangle(_BARS_X + half + 15, y - 9, 10, 10, "flops")
        + _text(_BARS_X + half + 30, y, "of all FLOPs", "small")
    )


def _picture(
    y: float, shape: tuple[int, ...], grid: tuple[int, int]
) -> tuple[str, float]:
    """Draws the image with the borders of its patches; returns also its lower end."""
    height, width = (side * _PICTURE / max(shape[:2]) for side in shape[:2])
    left = _BOX_X + _BOX_WIDTH / 2 - width / 2
    rows, columns = grid
    lines = [
        f"M{left:g} {y + height * i / rows:g}h{width:g}" for i in range(1, rows)
    ] + [f"M{left + width * i / columns:g} {y:g}v{height:g}" for i in range(1, columns)]
    drawn = _rectangle(left, y, width, height, "box")
    drawn += f'<path d="{"".join(lines)}" class="line" stroke-width="0.5"/>'
    drawn += _text(
        left + width + 12, y + height / 2 + 4, f"{grid[0]}×{grid[1]} patches", "small"
    )
    return drawn, y + height


def _arrow(start: float, end: float, label: float, shape: str) -> str:
    x = _BOX_X + _BOX_WIDTH / 2
    return (
        f'<path d="M{x:g} {start:g}V{end - 6:g}" class="line"/>'
        f'<path d="M{x - 4:g} {end - 7:g}h8l-4 7z" class="head"/>'
        + _text(x + 14, label + _ARROW / 2 + 4, shape, "small")
    )


def _skip(top: float, bottom: float) -> str:
    """Leads from above a box past it and others, to where both ways are added."""
    x, left = _BOX_X + _BOX_WIDTH / 2, _BOX_X - _SKIP
    return (
        f'<path d="M{x:g} {top - 12:g}H{left:g}V{bottom + 9:g}H{x - 6:g}" '
        'class="line"/>'
        f'<circle cx="{x:g}" cy="{bottom + 9:g}" r="6" class="sum"/>'
        f'<path d="M{x - 4:g} {bottom + 9:g}h8m-4-4v8" class="line"/>'
    )


def _box(y: float, stage: Stage) -> str:
    counts = []
    if stage.parameters:
        counts.append(f"{stage.parameters:,} parameters")
    if stage.flops:
        counts.append(with_unit(stage.flops))
    return (
        f"<g><title>{html.escape(stage.sentence)}</title>"
        f'<rect x="{_BOX_X}" y="{y:g}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" '
        'rx="5" class="box"/>'
        + _text(_BOX_X + 12, y + (17 if counts else 24), stage.name, "name")
        + _text(_BOX_X + 12, y + 32, ", ".join(counts), "small")
        + "</g>"
    )


def _bars(y: float, stage: Stage, sums: tuple[int, int]) -> str:
    found = ""
    counts = (stage.parameters, stage.flops)
    for i, (kind, count) in enumerate(
        zip(("parameters", "flops"), counts, strict=True)
    ):
        share = count / max(sums[i], 1)
        if count:
            top = y + 5 + 16 * i
            found += _rectangle(_BARS_X, top, max(share * _BARS_WIDTH, 0.5), 12, kind)
            end = _BARS_X + share * _BARS_WIDTH + 5
            found += _text(end, top + 10, f"{share:.1%}", "small")
    return found


def _frame(top: float, bottom: float, stages: Sequence[Stage]) -> str:
    """Draws the frame around a block, and the number of blocks beside it."""
    repeats = max(stage.repeats for stage in stages)
    left, width = _BOX_X - _FRAME, _BOX_WIDTH + 2 * _FRAME
    right, middle = left + width + 8, (top + bottom) / 2
    return (
        _rectangle(left, top, width, bottom - top, "frame")
        + _text(right, middle, f"× {repeats}", "name")
        + _text(right, middle + 16, "counted", "small")
        + _text(right, middle + 29, "together", "small")
    )
