"""A sanity check of maps: a map of a model should change with its weights."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.inspect.arguments import checked_images
from vit_jax.inspect.faithfulness import own_class
from vit_jax.inspect.targets import Target
from vit_jax.model import Model

# Layers that are drawn anew together before the blocks, from the outputs backwards.
_HEADS = {
    "head": ("head", "head_distillation", "pre_logits"),
    "map_head": ("map_head",),
}


class Sanity(NamedTuple):
    """The result of `sanity_check`.

    Attributes:
      stages: what was drawn anew last, "head" or a block; all before it stays so.
      correlations: of each map with that of the trained weights, −1…1; NaN where all
        values of a map are equal, so that it has no order.
    """

    stages: tuple[str, ...]
    correlations: Float[np.ndarray, "stages b"]


def sanity_check(
    compute: Callable[..., Any],
    model: Model,
    images: Float[Array | np.ndarray, "b h w c"],
    target: Target = None,
    *,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> Sanity:
    """Compares maps of a model with those after its weights are drawn anew.

    Cumulative randomisation from the outputs to the first block (arXiv:1810.03292). A
    map whose correlation stays near 1 shows the image or the architecture rather than
    what was learned. A class-agnostic map that reads no head stays at 1 after the first
    stage by construction.

    Args:
      compute: function of a model, images and a target that returns maps [b, gh, gw],
        such as `MAPS["relevance"].compute`.
      model: the trained model.
      images: images in the model's value range.
      target: as for maps; None is the most probable class by the trained weights.
      seed: of the random weights.
      progress: called with 1 after the maps of each stage.

    Raises:
      UserError: an argument is invalid.
    """
    images = checked_images(model, images)
    target = own_class(model, images, target)
    original = compute(model, images, target)
    stages, rows = [], []
    for stage, changed in randomised(model, seed):
        stages.append(stage)
        rows.append(rank_correlation(original, compute(changed, images, target)))
        if progress is not None:
            progress(1)
    return Sanity(tuple(stages), np.stack(rows))


def randomised(model: Model, seed: int = 0) -> Iterator[tuple[str, Model]]:
    """Draws layers anew, one after another from the outputs backwards, and keeps them.

    The module's own initialisers draw them, except that kernels that these leave at
    zero, as in a head for fine-tuning, are normal with variance 1 / fan-in: zeros would
    have no gradient.

    Returns:
      An iterator over the name of the last stage and the model. Embeddings and the
      final norm keep their weights.
    """
    a = model.architecture
    zeros = jnp.zeros((1, *a.image_size, a.channels))
    init_key, zero_key = jax.random.split(jax.random.key(seed))
    drawn = jax.jit(model.module.init)(init_key, zeros)["params"]
    blocks = sorted((name for name in model.params if "blocks_" in name), reverse=True)
    params = dict(model.params)
    for stage, names in (_HEADS | {name: (name,) for name in blocks}).items():
        found = {name: drawn[name] for name in names if name in params}
        if found:
            params |= _with_kernels(found, zero_key)
            yield stage, _with_params(model, dict(params))


def rank_correlation(
    first: Float[Array | np.ndarray, "b gh gw"],
    second: Float[Array | np.ndarray, "b gh gw"],
) -> Float[np.ndarray, " b"]:
    """Computes Spearman's rank correlation of the maps of each image.

    Returns:
      Values −1…1; NaN where all values of a map are equal.

    Raises:
      UserError: the maps have different shapes.
    """
    from scipy.stats import rankdata  # slow to import

    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape:
        raise UserError(f"maps of shapes {a.shape} and {b.shape}: expected equal ones")
    x, y = (rankdata(m.reshape(len(m), -1), axis=1) for m in (a, b))
    x, y = (m - m.mean(axis=1, keepdims=True) for m in (x, y))
    norms = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    dots = (x * y).sum(axis=1)
    return np.where(norms > 0, dots / np.where(norms > 0, norms, 1), np.nan)


def _with_kernels(params: Any, key: Any) -> Any:
    """Draws the kernels that are all zero."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(key, len(leaves))

    def drawn(path, x, key):
        if path[-1].key != "kernel" or np.any(np.asarray(x)):
            return x
        return jax.random.normal(key, x.shape, x.dtype) * x.shape[0] ** -0.5

    rows = zip(leaves, keys, strict=True)
    return tree.unflatten([drawn(path, x, key) for (path, x), key in rows])


def _with_params(model: Model, params: Any) -> Model:
    return Model(
        *(model.module, params, model.preprocessing, model.class_names, model.config),
        *(model.step, model.outputs),
    )
