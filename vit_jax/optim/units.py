"""Norms per parameter, where a parameter is what published code holds as one array.

LARS and LAMB compare the norm of each parameter with that of its update, DINO clips the
gradient of each parameter, and adaptive clipping compares a gradient with the parameter
output by output. Published Vision Transformers hold query, key and value
in one array, and the class token's position with those of the patches; here they are
separate. To train like the original, these share one norm.
"""

import collections
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.trees import path_name

# Pattern → replacement: parameters with the same result are one unit.
_JOINED = (
    (r"(blocks_\d+/.*)\b(query|key|value)/(kernel|bias)", r"\1qkv/\3"),
    (r"pos_embed_prefix", "pos_embed"),
)


def unit_of(path: str) -> str:
    """Returns the name of the unit that a parameter belongs to.

    Args:
      path: its path, as in "blocks_00/attention/query/kernel".
    """
    for pattern, joined in _JOINED:
        if match := re.fullmatch(pattern, path):
            return match.expand(joined)
    return path


def unit_norms(tree: Any) -> Any:
    """Returns a tree like `tree` with the float32 norm of each leaf's unit, scalars."""
    squares: dict[str, Array] = collections.defaultdict(lambda: jnp.zeros(()))
    for path, x in jax.tree.leaves_with_path(tree):
        square = jnp.sum(jnp.square(x.astype(jnp.float32)))
        squares[unit_of(path_name(path))] += square
    return jax.tree.map_with_path(
        lambda path, _: jnp.sqrt(squares[unit_of(path_name(path))]), tree
    )


def clip_by_unit_norm(max_norm: float) -> optax.GradientTransformation:
    """Makes DINO's clipping: g · min(1, max_norm / (‖g‖ + 1e-6)) for each unit."""

    def clipped(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map(
            lambda g, norm: g * jnp.minimum(1.0, max_norm / (norm + 1e-6)),
            updates,
            unit_norms(updates),
        )

    return optax.stateless(clipped)


# Below this, the norm of a parameter does not lower the limit on its gradient.
_SMALLEST_NORM = 1e-3
# The classifier, whose gradients are not clipped (arXiv:2102.06171, §4.1; timm).
_CLASSIFIER = re.compile(r"(head|head_distillation)/.*")


def without_adaptive_clipping(paths: Iterable[str]) -> set[str]:
    """Returns those of the paths whose gradients are never clipped adaptively."""
    return {path for path in paths if _CLASSIFIER.fullmatch(path)}


def output_norms(tree: Any) -> Any:
    """Returns a tree like `tree` with float32 norms that broadcast with its leaves.

    A kernel, [inputs, outputs] or [height, width, inputs, outputs], has a norm for each
    output: [1, outputs] or [1, 1, 1, outputs]. Biases, scales, tokens and positions
    have that of their unit, a scalar.
    """

    def norm(path: Any, x: Array, of_unit: Array) -> Array:
        if x.ndim != 2 and not (x.ndim > 2 and path_name(path).endswith("kernel")):
            return of_unit
        squares = jnp.square(x.astype(jnp.float32))
        axes = tuple(range(x.ndim - 1))
        return jnp.sqrt(jnp.sum(squares, axis=axes, keepdims=True))

    return jax.tree.map_with_path(norm, tree, unit_norms(tree))


def clip_adaptively(factor: float) -> optax.GradientTransformation:
    """Makes adaptive gradient clipping (AGC; arXiv:2102.06171, §4.1).

    A gradient g of parameters p becomes g · min(1, factor · max(‖p‖, 1e-3) / ‖g‖), with
    norms for each output; see `output_norms`. The classifier is left out.

    Args:
      factor: λ, the largest ratio of the two norms.
    """

    def clipped(updates: Any, params: Any) -> Any:
        def clip(path: Any, g: Array, g_norm: Array, p_norm: Array) -> Array:
            if without_adaptive_clipping([path_name(path)]):
                return g
            limit = factor * jnp.maximum(p_norm, _SMALLEST_NORM)
            # A limit below 1e-6 counts as in timm: nothing is divided by less.
            scale = limit / jnp.maximum(g_norm, 1e-6)
            return jnp.where(g_norm < limit, g, g * scale)

        return jax.tree.map_with_path(
            clip, updates, output_norms(updates), output_norms(params)
        )

    return optax.stateless(clipped)


def scale_by_unit_trust_ratio(
    coefficient: float, applies: Callable[[str, Array], bool]
) -> optax.GradientTransformation:
    """Makes the layer-wise adaptation of LARS and LAMB.

    An update u of parameters p becomes coefficient · ‖p‖/‖u‖ · u for each unit; if one
    of the norms is 0, it stays as it is.

    Args:
      coefficient: factor of the ratio.
      applies: path and update → whether that update is scaled at all. Those that are
        not still count in the norms of their unit.
    """

    def scaled(updates: Any, params: Any) -> Any:
        def scale(path: Any, u: Array, p_norm: Array, u_norm: Array) -> Array:
            if not applies(path_name(path), u):
                return u
            usual = (p_norm > 0) & (u_norm > 0)
            ratio = coefficient * p_norm / jnp.where(usual, u_norm, 1.0)
            return u * jnp.where(usual, ratio, 1.0)

        return jax.tree.map_with_path(
            scale, updates, unit_norms(params), unit_norms(updates)
        )

    return optax.stateless(scaled)
