"""Files of a sweep over patches, sizes or variants: a CSV table, and a plot."""

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vit_jax.errors import UserError
from vit_jax.files import atomic_write

PLOTS = (".svg", ".png")
_DPI = 150


class _Panel(NamedTuple):
    """A panel of the plot: its title with the unit, and its value from a row."""

    title: str
    value: Callable[[dict[str, Any]], float | None]


def _scaled(name: str, unit: float) -> Callable[[dict[str, Any]], float | None]:
    return lambda row: None if row[name] is None else row[name] / unit


# Those without values are left out.
_PANELS = (
    _Panel("tokens", _scaled("tokens", 1)),
    _Panel("parameters, millions", _scaled("params", 1e6)),
    _Panel("forward GFLOPs per image", _scaled("flops_per_image", 1e9)),
    _Panel("scores of a block, MiB per image", _scaled("attention_bytes", 2**20)),
    _Panel("forward pass, ms (measured)", _scaled("forward_seconds", 1e-3)),
    _Panel("forward pass, GiB", _scaled("forward_peak", 2**30)),
    _Panel("training step, ms (hyb)", _scaled("hyb_seconds", 1e-3)),
    _Panel("training step, GiB per device", _scaled("peak", 2**30)),
)


def check_path(path: str, flag: str, endings: Sequence[str]) -> pathlib.Path | None:
    """Returns the path of a file to write; None if it is empty.

    Raises:
      UserError: it has another ending, or its folder does not exist.
    """
    if not path:
        return None
    found = pathlib.Path(path)
    if found.suffix.lower() not in endings:
        raise UserError(
            f"--{flag}={path}: expected a file that ends in {' or '.join(endings)}"
        )
    if not found.parent.is_dir():
        raise UserError(f"--{flag}={path}: there is no folder {found.parent}")
    if found.is_dir():
        raise UserError(f"--{flag}={path} is a folder; pass the path of a file")
    return found


def write_csv(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Writes a row of plain numbers for each point; unknown ones are empty."""
    flat = [row["set"] | {k: v for k, v in row.items() if k != "set"} for row in rows]
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


def write_plot(rows: Sequence[dict[str, Any]], title: str, path: pathlib.Path) -> None:
    """Draws a panel for each number against the values of a sweep.

    Args:
      rows: from `model_sweeps.run`.
      title: text above the panels.
      path: a file that ends in .svg, whose text stays text, or .png.
    """
    # Imported here because only this needs it, and it takes long.
    import matplotlib
    from matplotlib.figure import Figure

    [key] = rows[0]["set"]
    labels = [row["set"][key] for row in rows]
    numbers = all(label.isdecimal() for label in labels)
    places = list(map(int, labels)) if numbers else list(range(len(labels)))
    panels = [(p.title, [p.value(row) for row in rows]) for p in _PANELS]
    panels = [(name, values) for name, values in panels if any(values)]
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 2.8 * lines), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, values) in zip(grid, panels, strict=False):
        known = [(x, y) for x, y in zip(places, values, strict=True) if y is not None]
        axes.plot(*zip(*known, strict=True), marker="o", color="tab:blue")
        for x, y in known:
            axes.annotate(
                f"{y:,.3g}" if y < 1000 else f"{y:,.0f}",
                *((x, y), (0, 5)),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.set_title(name, fontsize=10)
        axes.set_xticks(places, labels)
        axes.tick_params(labelsize=8)
        axes.set_xlabel(key.removeprefix("model."))
        axes.margins(x=0.12)
        axes.set_ylim(0, 1.2 * max(y for _, y in known))
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    # The same rows make the same file.
    svg = path.suffix.lower() == ".svg"
    fixed: Any = {"svg.fonttype": "none", "svg.hashsalt": "sweep"}
    with matplotlib.rc_context(fixed), atomic_write(path) as temporary:
        figure.savefig(
            temporary,
            format="svg" if svg else "png",
            dpi=_DPI,
            metadata={"Date": None} if svg else None,
        )
