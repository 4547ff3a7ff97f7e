"""Plots as SVG text, by Matplotlib, the same at every call."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_SIZE = (6.0, 3.2)  # inches
# Text stays text: it is small, and can be searched. Names of classes are no formulas.
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    markers: bool = False,
    log_y: bool = False,
) -> str:
    """Plots named lines.

    Args:
      series: name → values on the horizontal and on the vertical axis.
      title: above the plot.
      x: label of the horizontal axis, with its unit.
      y: label of the vertical axis, with its unit.
      markers: mark every value.
      log_y: a logarithmic vertical axis.
    """

    def draw(axes: Any) -> None:
        for name, (across, up) in series.items():
            axes.plot(across, up, label=name, marker="." if markers else None)
        axes.set(title=title, xlabel=x, ylabel=y, yscale="log" if log_y else "linear")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)

    return _drawn(draw)


def heads(values: Any, *, title: str, y: str) -> str:
    """Plots a number of every head, [depth, heads], over the layers.

    Args:
      values: one number per layer and head.
      title: above the plot.
      y: label of the vertical axis, with its unit.
    """
    values = np.asarray(values)

    def draw(axes: Any) -> None:
        layers = np.arange(len(values))
        for head in np.sort(values, axis=1).T:
            axes.plot(layers, head, ".", color="C0", alpha=0.5)
        axes.plot(layers, values.mean(axis=1), color="C1", label="mean")
        axes.set(title=title, xlabel="layer", ylabel=y)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)

    return _drawn(draw)


def matrix(values: Any, *, title: str, x: str, y: str) -> str:
    """Plots a matrix as colours, with a scale.

    Args:
      values: the matrix; its first row is on top.
      title: above the plot.
      x: label of the columns.
      y: label of the rows.
    """

    def draw(axes: Any) -> None:
        image = axes.imshow(values, cmap="viridis")
        axes.figure.colorbar(image)
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(False)

    return _drawn(draw, (4.6, 3.8))


def histogram(values: Any, *, title: str, x: str, bins: int = 50) -> str:
    """Plots how many values lie in each of equal intervals, on a logarithmic axis.

    Args:
      values: any numbers.
      title: above the plot.
      x: label of the horizontal axis, with its unit.
      bins: number of intervals.
    """

    def draw(axes: Any) -> None:
        axes.hist(np.ravel(values), bins=bins, log=True)
        axes.set(title=title, xlabel=x, ylabel="number")

    return _drawn(draw)


def _drawn(draw: Any, size: tuple[float, float] = _SIZE) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt keeps ids, and so the text, the same at every call.
    style: Any = _STYLE | {"svg.hashsalt": "vit_jax"}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # Within a page there is neither a declaration nor a size in points.
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
