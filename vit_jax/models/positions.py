"""Position embeddings: the sin-cos grid, and resizing from one grid to another.

Published code resizes in five ways with different results; each is a row of `METHODS`.
A resize is separable: one [new, old] matrix for the height and one for the width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_ROUNDING = 1e-5  # the most by which libraries' fixed positions differ

DENOMINATORS: dict[str, Callable[[int], int]] = {
    "big_vision": lambda frequencies: frequencies - 1,
    "mae": lambda frequencies: frequencies,
}


def sincos2d(
    grid: tuple[int, int], width: int, denominator: str
) -> Float[np.ndarray, "1 gh gw d"]:
    """Computes fixed positions of a grid: sin xω, cos xω, sin yω, cos yω.

    ω runs over width / 4 frequencies, from 1 down to 1/10000
    (`denominator="big_vision"`, arXiv:2205.01580), or stops one step before ("mae",
    arXiv:2111.06377). The grid is (height, width).

    Raises:
      ValueError: `width` is below 8 or not divisible by four, or `denominator` is
        unknown.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(
            f"sincos_denominator is {denominator!r}, expected one of "
            f"{', '.join(DENOMINATORS)}"
        )
    if width % 4 or width < 8:
        raise ValueError(f"sincos2d needs a width of 8, 12, 16, …, got {width}")
    frequencies = width // 4
    exponents = np.arange(frequencies) / DENOMINATORS[denominator](frequencies)
    y, x = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    x, y = (position[..., None] * 10000.0**-exponents for position in (x, y))
    embedding = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=-1)
    return embedding[None].astype(np.float32)


def resize(
    pos_embed: Float[Array | np.ndarray, "1 gh gw d"],
    grid: tuple[int, int],
    method: str = "bicubic",
) -> Float[Array | np.ndarray, "1 new_gh new_gw d"]:
    """Resamples `pos_embed` on another grid in float32; unchanged if the grids agree.

    Args:
      pos_embed: embeddings of the patches alone.
      grid: new (height, width) in patches.
      method: "bicubic", which timm uses (antialiased); "bicubic_torch", which DeiT, MAE
        and Hugging Face use (not antialiased); "bicubic_offset", that of DINO's and
        DINOv2's own code (not antialiased, by the factor (new + 0.1) / old);
        "bilinear" (half-pixel centres, not antialiased); "linear", which FlexiViT
        uses (the same where the grid grows, antialiased where it shrinks;
        `jax.image.resize`); or "google", which the published JAX code uses (bilinear
        between aligned corners; arXiv:2010.11929, section 3.2).

    Raises:
      ValueError: the method is unknown, or a side of the grid is below one.
    """
    if method not in METHODS:
        raise ValueError(
            f"posemb resize method is {method!r}, expected one of {', '.join(METHODS)}"
        )
    if min(grid) < 1:
        raise ValueError(
            f"cannot resize position embeddings to the grid {grid}; expected sides of "
            "at least 1"
        )
    _, gh, gw, _ = pos_embed.shape
    if (gh, gw) == tuple(grid):
        return pos_embed
    rows, columns = (
        METHODS[method](old, new).astype(np.float32)
        for old, new in zip((gh, gw), grid, strict=True)
    )
    return jnp.einsum(
        "yh,xw,bhwd->byxd",
        rows,
        columns,
        jnp.asarray(pos_embed, jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Evaluates Keys' cubic convolution kernel; `a` is its slope at distance one."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def same_but_rounded(found: Any, fixed: np.ndarray) -> bool:
    """Returns whether stored positions are these fixed ones, up to rounding.

    Libraries compute fixed positions with other roundings.
    """
    return bool(np.abs(np.asarray(found) - fixed).max() <= _ROUNDING)


def _half_pixel(old: int, new: int, scale: float | None = None) -> np.ndarray:
    """Returns the centres of `new` cells in units of `old` cells' centres.

    `scale` is the number of new cells per old one, by default new / old.
    """
    if scale is not None:
        return (np.arange(new) + 0.5) / scale - 0.5
    return (np.arange(new) + 0.5) * old / new - 0.5


def _antialiased(
    kernel: Callable[[np.ndarray], np.ndarray], old: int, new: int
) -> np.ndarray:
    # Downscaling widens the kernel to cover every old cell. Weights outside the grid
    # are dropped, and the rest is rescaled to sum to one.
    distance = _half_pixel(old, new)[:, None] - np.arange(old)[None]
    weights = kernel(distance / max(old / new, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def _antialiased_cubic(old: int, new: int) -> np.ndarray:
    return _antialiased(lambda x: _cubic(x, a=-0.5), old, new)


def _antialiased_linear(old: int, new: int) -> np.ndarray:
    return _antialiased(lambda x: np.maximum(1 - np.abs(x), 0.0), old, new)


def _torch_cubic(old: int, new: int, scale: float | None = None) -> np.ndarray:
    positions = _half_pixel(old, new, scale)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        index = np.floor(positions).astype(int) + tap
        weight = _cubic(positions - index, a=-0.75)
        # Cells beyond the border have the value of the border cell.
        matrix[np.arange(new), np.clip(index, 0, old - 1)] += weight
    return matrix


def _offset_cubic(old: int, new: int) -> np.ndarray:
    # The published code enlarges by (new + 0.1) / old, so that rounding down gives the
    # new length, and samples at that scale.
    return _torch_cubic(old, new, scale=(new + 0.1) / old)


def _linear(positions: np.ndarray, old: int) -> np.ndarray:
    positions = np.clip(positions, 0, old - 1)
    distance = np.abs(positions[:, None] - np.arange(old)[None])
    return np.maximum(1.0 - distance, 0.0)


def _half_pixel_linear(old: int, new: int) -> np.ndarray:
    return _linear(_half_pixel(old, new), old)


def _aligned_corners_linear(old: int, new: int) -> np.ndarray:
    return _linear(np.linspace(0, old - 1, new), old)


# Old and new length → float64 matrix [new, old].
METHODS: dict[str, Callable[[int, int], np.ndarray]] = {
    "bicubic": _antialiased_cubic,
    "bicubic_torch": _torch_cubic,
    "bicubic_offset": _offset_cubic,
    "bilinear": _half_pixel_linear,
    "linear": _antialiased_linear,
    "google": _aligned_corners_linear,
}
