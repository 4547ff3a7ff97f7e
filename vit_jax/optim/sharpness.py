"""Sharpness-aware minimisation: a step that is made with another gradient.

SAM (arXiv:2010.01412) takes the gradient where the loss rises most within a radius rho
of the parameters, and GSAM (arXiv:2203.08065) also reduces the gap between the two
losses. Both are a function from gradient function to gradient function, which is all
that the training step knows of them.

The gradient that perturbs is that of the whole batch: all devices and microbatches. The
published code of GSAM perturbs each device by the gradient of its own part (called
m-sharpness in SAM's paper), so its results depend on the number of devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.config import Config
from vit_jax.optim.groups import Groups
from vit_jax.optim.schedules import make_schedule

# Trained parameters → the gradient of the batch's mean loss by them, and other results.
Gradient = Callable[[Any], tuple[Any, Any]]
# A gradient function and the number of finished updates → another gradient function.
Wrap = Callable[[Gradient, Array], Gradient]

_TINY = 1e-12  # added to the norm by which the perturbation is divided


def _plain(gradient: Any, params: Any) -> tuple[Any, Array]:
    del params
    return gradient, optax.tree.norm(gradient)


def _asam(gradient: Any, params: Any) -> tuple[Any, Array]:
    scaled = jax.tree.map(lambda g, p: jnp.abs(p) * g, gradient, params)
    direction = jax.tree.map(lambda g, p: jnp.abs(p) * g, scaled, params)
    return direction, optax.tree.norm(scaled)


def _gsam(gradient: Any, params: Any) -> tuple[Any, Array]:
    direction = jax.tree.map(lambda g, p: jnp.abs(p) * g, gradient, params)
    return direction, optax.tree.norm(gradient)


# `config.sam.adaptive` → how gradient g and parameters w become the direction of the
# perturbation and the norm by which it is divided:
ADAPTIVE: Mapping[str, Callable[[Any, Any], tuple[Any, Array]]] = {
    "": _plain,  # g / ‖g‖
    "asam": _asam,  # w² g / ‖ |w| g ‖ (arXiv:2102.11600, with its η = 0)
    "gsam": _gsam,  # |w| g / ‖g‖, as in the published code of GSAM
}


def gradient_passes(config: Config) -> int:
    """Returns how many times a step computes the gradient of its batch."""
    return 2 if config.sam.rho else 1


def make_gradient_wrap(config: Config, groups: Groups) -> Wrap:
    """Makes the wrap of the gradient that `config.sam` describes.

    The wrapped function evaluates the gradient function twice, at the parameters w and
    at w + rho g/(‖g‖ + 1e-12). It returns the other results, such as the loss, of the
    first. Without `sam.rho` it is the gradient function itself. Parameters that take
    part only later (`begin` and `start` of their groups) are not perturbed before.

    Args:
      config: a resolved config.
      groups: how each parameter is trained.
    """
    sam = config.sam
    if not sam.rho:
        return lambda gradient, step: gradient
    radius, adapted = make_rho_schedule(config), ADAPTIVE[sam.adaptive]
    combined = _robust_based if sam.minimize_fp else _clean_based

    def wrap(gradient: Gradient, step: Array) -> Gradient:
        def wrapped(params: Any) -> tuple[Any, Any]:
            clean, results = gradient(params)
            direction, norm = adapted(_taking_part(groups, clean, step), params)
            scale = radius(step) / (norm + _TINY)
            there = jax.tree.map(lambda p, d: p + scale * d, params, direction)
            robust, _ = gradient(there)
            if not sam.alpha:
                return robust, results
            return combined(clean, robust, sam.alpha), results

        return wrapped

    return wrap


def make_rho_schedule(config: Config) -> Callable[[Any], Array]:
    """Makes the radius of the perturbation as a function of the finished updates.

    With `sam.rho_min` it follows the learning rate, as in GSAM (§3.3): rho_min +
    (rho − rho_min) (rate − low) / (peak − low), but never below 0. The peak is
    `learning_rate`, and low the value in which a linear or cosine schedule ends, 0 for
    others.
    """
    sam = config.sam
    ends = {"linear": "end_learning_rate", "cosine": "min_learning_rate"}
    low = config[ends[config.schedule]] if config.schedule in ends else 0.0
    peak, schedule = config.learning_rate, make_schedule(config)
    if sam.rho_min is None or peak == low:
        return lambda step: jnp.full_like(jnp.asarray(step, jnp.float32), sam.rho)

    def radius(step: Any) -> Array:
        share = (schedule(step) - low) / (peak - low)
        return jnp.maximum(sam.rho_min + (sam.rho - sam.rho_min) * share, 0.0)

    return radius


def _taking_part(groups: Groups, tree: Any, step: Array) -> Any:
    """Replaces the gradients of parameters that do not take part yet by zeros."""
    return jax.tree.map(
        lambda x, start, begin: (
            jnp.where(step >= max(start, begin), x, 0) if start or begin else x
        ),
        tree,
        groups.of("start", tree),
        groups.of("begin", tree),
    )


def _robust_based(clean: Any, robust: Any, alpha: float) -> Any:
    """Returns robust − alpha × the part of `clean` that is orthogonal to `robust`."""
    return optax.tree.add_scale(robust, -alpha, _orthogonal(clean, robust))


def _clean_based(clean: Any, robust: Any, alpha: float) -> Any:
    """Returns clean + alpha × the part of `robust` that is orthogonal to `clean`."""
    return optax.tree.add_scale(clean, alpha, _orthogonal(robust, clean))


def _orthogonal(tree: Any, to: Any) -> Any:
    """Returns the part of a tree, seen as a vector, that is orthogonal to another."""
    norm = optax.tree.norm(to)
    unit = jax.tree.map(lambda x: x / jnp.where(norm > 0, norm, 1.0), to)
    # Not a product of flattened arrays, for which sharded ones would be gathered.
    products = jax.tree.map(lambda x, u: jnp.sum(x * u), tree, unit)
    share = sum(jax.tree.leaves(products), start=jnp.zeros(()))
    return optax.tree.add_scale(tree, -share, unit)
