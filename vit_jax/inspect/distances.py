"""How far attention reaches, and how evenly it is spread."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.model import Model


class Distances(NamedTuple):
    """Mean attention distance and entropy of each layer and head."""

    pixels: Float[np.ndarray, "layers heads"]
    share: Float[np.ndarray, "layers heads"]  # of the longer side of the image
    entropy: Float[np.ndarray, "layers heads"]  # in nats


def attention_distance(
    attention: Float[Array | np.ndarray, "*batch n n"],
    grid: tuple[int, int],
    patch_size: tuple[int, int],
) -> Float[np.ndarray, "*batch"]:
    """Computes the mean attention distance in pixels (arXiv:2010.11929, D.7).

    It is the mean over patches i of Σ_j A_ij · ‖p_i − p_j‖, where p are the centres of
    the patches. Tokens before the patches are ignored, both as queries and as keys, and
    rows are divided by their sum over patches. A row without any such weight does not
    count.

    Args:
      attention: weights, rows are queries; the patches are the last rows and columns.
      grid: (height, width) in patches.
      patch_size: (height, width) in pixels.

    Raises:
      UserError: there are fewer tokens than patches.
    """
    count = grid[0] * grid[1]
    if np.shape(attention)[-1] < count:
        raise UserError(
            f"attention has {np.shape(attention)[-1]} tokens, fewer than the {count} "
            f"patches of the grid {grid}; pass the grid of the same model"
        )
    weights = np.asarray(attention)[..., -count:, -count:]
    rows, columns = np.indices(grid).reshape(2, -1) * np.array(patch_size)[:, None]
    pairs = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    mass = weights.sum(axis=-1, dtype=np.float64)
    reached = np.einsum("...ij,ij->...i", weights, pairs)
    counts = mass > 0
    per_row = np.where(counts, reached / np.where(counts, mass, 1), 0)
    return per_row.sum(axis=-1) / np.maximum(counts.sum(axis=-1), 1)


def attention_entropy(
    attention: Float[Array | np.ndarray, "*batch n m"],
) -> Float[np.ndarray, "*batch"]:
    """Computes the mean entropy of the rows, −Σ_j A_ij ln A_ij, in nats.

    It is 0 where each token reads one token, ln m where it reads m alike. With prompts,
    rows without their columns sum to less than one; the result is of what is left.
    """
    weights = np.asarray(attention, np.float64)
    logs = np.log(np.where(weights > 0, weights, 1))
    return np.abs((weights * logs).sum(axis=-1)).mean(axis=-1)


def attention_distances(model: Model, images: Float[Array, "b h w c"]) -> Distances:
    """Computes distance and entropy of all layers and heads, averaged over images.

    Raises:
      UserError: the model has no attention, or the images have another shape.
    """
    a = model.architecture
    found = []
    # The weights of one layer at a time are in memory.
    for layer in range(a.depth):
        weights = np.asarray(jax.device_get(model.attention(images, [layer])))[:, 0]
        reach = attention_distance(weights, a.grid, a.patch_size).mean(axis=0)
        found.append((reach, attention_entropy(weights).mean(axis=0)))
    pixels, entropy = (np.stack(x) for x in zip(*found, strict=True))
    return Distances(pixels, pixels / max(a.image_size), entropy)
