"""Principal components of the filters that make tokens of patches."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.model import Model
from vit_jax.models.flexible import resize_patches


class Filters(NamedTuple):
    """Principal components of a patch embedding's kernel, largest first.

    Attributes:
      components: pictures in [0, 1].
      shares: share of the filters' variance that each component has.
    """

    components: Float[np.ndarray, "count ph pw c"]
    shares: Float[np.ndarray, " count"]


def patch_filters(model: Model, count: int = 28) -> Filters:
    """Computes the leading principal components of a model's patch embedding.

    `filter_components` has the definition. A flexible model's kernel is resized to the
    size of its patches first.

    Raises:
      UserError: the model's patches are not cut from pixels, or it has fewer
        components.
    """
    a = model.architecture
    if getattr(a, "trunk", None) is not None:
        raise UserError(
            "this model is a hybrid, whose patches are cut from the features of a "
            "ResNet, so its filters are not pictures"
        )
    kernel = np.asarray(model.params["patch_embed"]["kernel"])
    if kernel.shape[:2] != a.embed_window:
        kernel = resize_patches(kernel, a.embed_window)
    return filter_components(kernel, count)


def filter_components(
    kernel: Float[Array | np.ndarray, "ph pw c d"], count: int = 28
) -> Filters:
    """Computes the leading principal components of d filters as pictures.

    Each filter is a sample of ph·pw·c numbers; the mean filter is subtracted
    (arXiv:2010.11929, figure 7). Of a component's two signs, the one whose entry of the
    largest absolute value is positive is taken. Each is scaled to [0, 1] for itself:
    three channels together, as a colour; otherwise each channel alone, as its own
    picture in grey. What does not vary is 0.5.

    Raises:
      UserError: there are fewer components than asked for.
    """
    filters = np.asarray(kernel, np.float64)
    *shape, d = filters.shape
    filters = filters.reshape(-1, d).T
    most = min(filters.shape)
    if not 1 <= count <= most:
        raise UserError(
            f"count={count}: {d} filters of {filters.shape[1]} numbers have {most} "
            f"components; expected a count from 1 to {most}"
        )
    _, values, components = np.linalg.svd(
        filters - filters.mean(axis=0), full_matrices=False
    )
    total = (values**2).sum()
    shares = values[:count] ** 2 / (total if total else 1.0)
    components = signed(components[:count])
    return Filters(_scaled(components.reshape(count, *shape)), shares)


def signed(components: Float[np.ndarray, "count n"]) -> Float[np.ndarray, "count n"]:
    """Returns components with the sign that makes their largest entry positive.

    The sign of a principal component is arbitrary, and differs between machines.
    """
    largest = np.abs(components).argmax(axis=1, keepdims=True)
    signs = np.sign(np.take_along_axis(components, largest, axis=1))
    return components * np.where(signs == 0, 1.0, signs)


def _scaled(pictures: Float[np.ndarray, "count ph pw c"]) -> np.ndarray:
    axes = (1, 2, 3) if pictures.shape[3] == 3 else (1, 2)
    low = pictures.min(axis=axes, keepdims=True)
    spread = np.broadcast_to(
        pictures.max(axis=axes, keepdims=True) - low, pictures.shape
    )
    flat = np.full_like(pictures, 0.5)
    return np.divide(pictures - low, spread, out=flat, where=spread > 1e-12)
