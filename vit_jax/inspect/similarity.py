"""Linear CKA: how similar the features of two layers are (arXiv:1905.00414)."""

import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError


def cka(
    x: Float[Array | np.ndarray, "n d"], y: Float[Array | np.ndarray, "n e"]
) -> float:
    """Computes biased linear CKA, ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F), columns centred.

    Rotations and isotropic scaling of either change nothing. NaN if one is constant.
    """
    k, line = (_centred_gram(values) for values in (x, y))
    return float(_ratio((k * line).sum(), (k * k).sum(), (line * line).sum()))


def unbiased_hsic(
    k: Float[np.ndarray, "n n"], other: Float[np.ndarray, "n n"]
) -> float:
    """Estimates HSIC of two Gram matrices without bias (arXiv:2010.15327, eq. 3).

    Raises:
      UserError: there are fewer than four samples.
    """
    n = len(k)
    if n < 4:
        raise UserError(
            f"unbiased CKA needs at least 4 images in each batch, found {n}"
        )
    k, other = (m * (1 - np.eye(n)) for m in (k, other))
    total = (k * other).sum()
    total += k.sum() * other.sum() / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (k.sum(axis=0) @ other.sum(axis=1))
    return float(total / (n * (n - 3)))


class LayerSimilarity:
    """Unbiased linear CKA between layers, from batches (Nguyen 2021).

    The three HSICs are summed over the batches before the ratio is taken. The result
    may lie slightly above 1 or below 0.
    """

    def __init__(self):
        """Starts without any batch."""
        self._sums: list[np.ndarray] | None = None

    def add(
        self,
        a: Float[Array | np.ndarray, "layers_a n d"],
        b: Float[Array | np.ndarray, "layers_b n e"],
    ) -> None:
        """Adds the features of one batch of the same n images.

        Raises:
          UserError: the images differ in number or are fewer than four.
        """
        if np.shape(a)[1] != np.shape(b)[1]:
            raise UserError(
                f"features of {np.shape(a)[1]} and of {np.shape(b)[1]} images: CKA "
                "compares features of the same images"
            )
        left, right = ([_gram(layer) for layer in layers] for layers in (a, b))
        new = [
            np.array([[unbiased_hsic(k, m) for m in right] for k in left]),
            np.array([unbiased_hsic(k, k) for k in left]),
            np.array([unbiased_hsic(m, m) for m in right]),
        ]
        old = self._sums or [np.zeros_like(x) for x in new]
        self._sums = [x + y for x, y in zip(old, new, strict=True)]

    def result(self) -> Float[np.ndarray, "layers_a layers_b"]:
        """Returns the matrix of CKA.

        Raises:
          UserError: no batch was added.
        """
        if self._sums is None:
            raise UserError("CKA of no images: add at least one batch")
        both, left, right = self._sums
        return _ratio(both, left[:, None], right[None, :])


def layer_similarity(
    features_a: Float[Array | np.ndarray, "layers_a n d"],
    features_b: Float[Array | np.ndarray, "layers_b n e"],
) -> Float[np.ndarray, "layers_a layers_b"]:
    """Computes unbiased linear CKA between all layers of one or two models.

    Args:
      features_a: features of n images by layer, flattened.
      features_b: those of the same images in the other model, or the same features.

    Raises:
      UserError: the images differ in number or are fewer than four.
    """
    similarity = LayerSimilarity()
    similarity.add(features_a, features_b)
    return similarity.result()


def _gram(values) -> np.ndarray:
    x = np.asarray(values, np.float64)
    return x @ x.T


def _centred_gram(values) -> np.ndarray:
    x = np.asarray(values, np.float64)
    return _gram(x - x.mean(axis=0))


def _ratio(both, left, right) -> np.ndarray:
    product = np.asarray(left * right)
    valid = product > 0
    ratio = both / np.sqrt(np.where(valid, product, 1))
    return np.where(valid, ratio, np.nan)
