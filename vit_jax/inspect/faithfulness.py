"""Deletion and insertion: does a map order the patches as the model's score does?

A curve is the score of an image while its patches are replaced one after another, in
the order of a map (arXiv:1806.07421). It says how the score reacts to
images unlike those of training, which is not all that can be asked of a map.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from vit_jax.errors import UserError
from vit_jax.inspect.arguments import checked_images
from vit_jax.inspect.targets import Outputs, Target, cosine_to, resolved, value_of
from vit_jax.model import Model
from vit_jax.models.outputs import NUMBERS, show

# Images [m, h, w, c], and the index of the image each was made of [m] → scores [m].
Score = Callable[[Any, Any], Any]
Images = Float[Array | np.ndarray, "b h w c"]
Ranks = Int[np.ndarray, "b gh gw"]
Curves = Float[np.ndarray, "b points"]

# What replaces a deleted patch → it, for images [b, h, w, c].
FILLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zero": np.zeros_like,
    "mean": lambda x: np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape),
}
_BLUR = 11, 5.0  # side and σ in pixels of the Gaussian from which insertion starts


def score_of(model: Model, images: Images, target: Target = None) -> Score:
    """Returns the score of a curve: a function of masked images.

    Args:
      model: the model.
      images: the unmasked images, in the model's value range.
      target: class indices, for the probability of each class, or the number where
        outputs are numbers; None for the most probable class of the unmasked image, or,
        without classes, the cosine of the head's input to the unmasked image's; or a
        function of `Outputs`, as for maps. Arrays of a `jax.tree_util.Partial` with a
        row for each image are read at the rows of these images.

    Raises:
      UserError: an argument is invalid.
    """
    images = checked_images(model, images)
    b = len(images)
    of_class = not callable(target)
    if target is None and not (
        model.outputs == NUMBERS and model.architecture.num_classes
    ):
        target = _of_unmasked(model, images)
        of_class = not callable(target)
    chosen = resolved(model, b, target)
    shown = model.outputs if of_class else ""

    def score(masked, rows):
        rows = np.asarray(rows)
        # Arrays of one row for all images have the same values at row 0.
        of_rows = jax.tree.map(
            lambda x: x[rows] if np.ndim(x) and len(x) == b else x, chosen
        )
        return _scores(model.module, model.params, masked, of_rows, shown)

    return score


def own_class(model: Model, images: Images, target: Target = None) -> Target:
    """Returns a target that other weights or other pixels do not change.

    None becomes the most probable class of each image; without classes it stays None.
    """
    if target is None and model.architecture.num_classes and model.outputs != NUMBERS:
        return _of_unmasked(model, checked_images(model, images))
    return target


def ranks(
    maps: Float[Array | np.ndarray, "b gh gw"], *, least_first: bool = False
) -> Ranks:
    """Ranks the patches of maps: 0 for the patch that is changed first.

    Equal patches are ranked row by row, whichever end is first.

    Args:
      maps: values on the grid of patches.
      least_first: the smallest value is first, instead of the largest.

    Raises:
      UserError: the maps have another rank, or values that are not finite.
    """
    found = np.asarray(maps, np.float64)
    if found.ndim != 3 or not np.isfinite(found).all():
        raise UserError(
            f"maps of shape {found.shape}, {np.sum(~np.isfinite(found))} values not "
            "finite: expected finite values [images, rows, columns of patches]"
        )
    flat = found.reshape(len(found), -1)
    order = np.argsort(flat if least_first else -flat, axis=1, kind="stable")
    return np.argsort(order, axis=1, kind="stable").reshape(found.shape)


def random_ranks(count: int, grid: tuple[int, int], seed: int) -> Ranks:
    """Draws an order of patches, the same for all images whatever their number."""
    order = np.random.default_rng(seed).permutation(grid[0] * grid[1]).reshape(grid)
    return np.broadcast_to(order, (count, *grid))


def blurred(
    images: Images, size: int = _BLUR[0], sigma: float = _BLUR[1]
) -> Float[np.ndarray, "b h w c"]:
    """Blurs images by a Gaussian that is cut to `size` × `size` pixels.

    The sizes are those of RISE's code (eclique/RISE, evaluation.py), whose kernel is
    flatter, since it folds what lies outside its square into it, and which pads images
    by zeros. Here pixels beyond the border count as the nearest one.

    Args:
      images: images in any value range.
      size: side in pixels, odd.
      sigma: standard deviation in pixels.

    Raises:
      UserError: the size is not odd, or the deviation not above zero.
    """
    if size < 1 or size % 2 == 0 or not sigma > 0:
        raise UserError(
            f"size={size!r}, sigma={sigma!r}: expected an odd number of pixels and a "
            "deviation above zero"
        )
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    weights /= weights.sum()
    found = np.asarray(images, np.float32)
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (size // 2, size // 2)
        x, length = np.pad(found, pad, mode="edge"), found.shape[axis]
        found = np.zeros_like(found)
        for i, weight in enumerate(weights):
            found += np.float32(weight) * np.take(x, np.arange(i, i + length), axis)
    return found


def deletion(
    images: Images, fill: str = "zero"
) -> tuple[Float[np.ndarray, "b h w c"], Float[np.ndarray, "b h w c"]]:
    """Returns the first and the last images of deletion, for `curves`.

    Args:
      images: images in the model's value range.
      fill: what replaces them: "zero" of this range, or the "mean" color of the image.

    Raises:
      UserError: there is no such fill.
    """
    if fill not in FILLS:
        raise UserError(f"fill={fill!r}: choose {' or '.join(FILLS)}")
    whole = np.asarray(images, np.float32)
    return whole, FILLS[fill](whole)


def insertion(
    images: Images,
) -> tuple[Float[np.ndarray, "b h w c"], Float[np.ndarray, "b h w c"]]:
    """Returns the first and the last images of insertion: blurred and whole ones."""
    return blurred(images), np.asarray(images, np.float32)


def curves(
    score: Score,
    ends: tuple[np.ndarray, np.ndarray],
    order: Ranks,
    *,
    steps: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int], Any] | None = None,
) -> Curves:
    """Computes the scores while patches of the first images become those of the last.

    Args:
      score: from `score_of`, or any function of images and the indices of their rows.
      ends: first and last images [b, h, w, c], from `deletion` or `insertion`.
      order: ranks of the patches, from `ranks`.
      steps: number of changes, each of about as many patches; by default of one.
      batch_size: images per forward pass; this many are in memory.
      progress: called with the number of images scored since the last call.

    Returns:
      Scores [b, steps + 1]; the first is that of the first image.

    Raises:
      UserError: an argument is invalid.
    """
    first, last = ends
    b, gh, gw = order.shape
    if len(first) != b:
        raise UserError(f"{b} maps for {len(first)} images: expected as many")
    counts = _counts(gh * gw, steps)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size!r}: expected at least 1")
    found = np.empty(b * len(counts), np.float32)
    for start in range(0, len(found), batch_size):
        # The last image is repeated, so that all batches use one program.
        at = np.minimum(np.arange(start, start + batch_size), len(found) - 1)
        rows, points = np.divmod(at, len(counts))
        changed = order[rows] < counts[points][:, None, None]
        mask = _pixels(changed, first.shape[1:3])[..., None]
        masked = np.where(mask, last[rows], first[rows])
        count = min(batch_size, len(found) - start)
        found[start : start + count] = np.asarray(score(masked, rows))[:count]
        if progress is not None:
            progress(count)
    return found.reshape(b, len(counts))


def random_baseline(
    score: Score,
    ends: tuple[np.ndarray, np.ndarray],
    grid: tuple[int, int],
    *,
    orders: int = 5,
    seed: int = 0,
    **options: Any,
) -> Float[np.ndarray, "orders b points"]:
    """Computes `curves` for random orders, which a map has to beat.

    Args:
      score: as in `curves`.
      ends: as in `curves`.
      grid: rows and columns of patches.
      orders: number of random orders.
      seed: of the first order; the next ones have the next seeds.
      options: other arguments of `curves`.
    """
    b = len(ends[0])
    drawn = (random_ranks(b, grid, seed + i) for i in range(orders))
    return np.stack([curves(score, ends, order, **options) for order in drawn])


def area(curve: Float[np.ndarray, "*b points"]) -> Float[np.ndarray, "*b"]:
    """Computes (Σp − p₀/2 − p_n/2) / n of curves of n steps, by the trapezium rule."""
    p = np.asarray(curve, np.float64)
    ends = (p[..., 0] + p[..., -1]) / 2
    return (p.sum(axis=-1) - ends) / (p.shape[-1] - 1)


def cost(grid: tuple[int, int], maps: int, steps: int | None = None) -> int:
    """Returns how many images `curves` scores for an image and this many orders.

    Raises:
      UserError: there are not as many steps.
    """
    return maps * len(_counts(grid[0] * grid[1], steps))


def _counts(patches: int, steps: int | None) -> Int[np.ndarray, " points"]:
    """Returns how many patches are changed at each point."""
    steps = patches if steps is None else steps
    if not 1 <= steps <= patches:
        raise UserError(
            f"steps={steps}: expected 1 to {patches}, the number of patches"
        )
    return np.arange(steps + 1) * patches // steps


def _pixels(
    of_patches: Bool[np.ndarray, "m gh gw"], size: tuple[int, ...]
) -> Bool[np.ndarray, "m h w"]:
    (_, gh, gw), (h, w) = of_patches.shape, size
    return of_patches[:, (np.arange(h) * gh // h)[:, None], np.arange(w) * gw // w]


def _of_unmasked(model: Model, images) -> Any:
    """Returns the classes of images, or the cosine to their own vectors."""
    parts = [model(images[i : i + 32]) for i in range(0, len(images), 32)]
    found = np.concatenate([np.asarray(x) for x in parts])
    return found.argmax(axis=-1) if model.architecture.num_classes else cosine_to(found)


@partial(jax.jit, static_argnums=(0, 4))
def _scores(module, params, images, target: Partial, shown: str) -> Float[Array, " m"]:
    names = ("pooled", "pre_logits")
    logits, found = module.apply({"params": params}, images, intermediates=names)
    if shown:
        logits = show(shown, logits)
    outputs = Outputs(jnp.asarray(logits), found["pooled"], found["pre_logits"])
    return value_of(target, outputs).astype(jnp.float32)
