"""Weights of classes, and their prior, from the numbers of training examples."""

import math

import numpy as np
from jaxtyping import Float

from vit_jax.words import shortened

Counts = Float[np.ndarray, " k"]

WEIGHTS = ("balanced", "sqrt", "effective")


def class_weights(kind: str, counts: Counts, beta: float = 0.9999) -> Counts:
    """Computes weights that grow as classes become rare.

    Args:
      kind: "balanced", n / (K · n_k), as in scikit-learn; "sqrt", the root of that;
        "effective", (1 − β) / (1 − β^n_k) (arXiv:1901.05555), scaled to the sum K as in
        its code.
      counts: n_k, the number of examples of each class, above 0; n is their sum.
      beta: β of "effective".
    """
    if kind == "effective":
        log_beta = math.log(beta) if beta else -math.inf
        weights = -(1 - beta) / np.expm1(counts * log_beta)
        return weights / weights.sum() * counts.size
    weights = counts.sum() / (counts.size * counts)
    return np.sqrt(weights) if kind == "sqrt" else weights


def log_prior(counts: Counts) -> Counts:
    """Returns log π of classes that exclude each other; π is their share."""
    return np.log(counts / counts.sum())


def log_odds(counts: Counts, examples: float) -> Counts:
    """Returns log π / (1 − π) of classes that are asked for separately."""
    return np.log(counts / (examples - counts))


def classes_without(counts: Counts, names: tuple[str, ...]) -> str:
    """Names the classes that have no example; "" if there are none."""
    none = np.flatnonzero(counts == 0)
    if not none.size:
        return ""
    named = shortened([names[i] for i in none], repr)
    return f"{none.size} of {counts.size} classes have no training example: {named}"
