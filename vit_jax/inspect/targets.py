"""Targets: the number of each image that gradients are taken of."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from vit_jax.errors import UserError
from vit_jax.model import Model
from vit_jax.models.outputs import NUMBERS


class Outputs(NamedTuple):
    """Outputs of a model, from which a target is computed.

    Attributes:
      logits: logits, the mean of two heads; without classes, the head's input.
      pooled: the result of pooling.
      pre_logits: the head's input.
    """

    logits: Float[Array, "b k"]
    pooled: Float[Array, "b r"]
    pre_logits: Float[Array, "b r"]


# An index of a class or one for each image, None, or a function of `Outputs` that
# returns [b], a number for each image that depends on this image alone.
Target = int | Sequence[int] | Array | np.ndarray | Callable[[Outputs], Array] | None


def cosine_to(reference: Float[Array | np.ndarray, "*b r"]) -> Partial:
    """Returns a target: the cosine of the head's input to a reference.

    Of no use for an image's own vector: there the cosine is at its maximum, and its
    gradient is zero. `length` and `away_from` are for that.

    Args:
      reference: the head's input for other images, one of all [r] or one of each
        [b, r]; for a model without classes, what `model(images)` returns.
    """
    return Partial(_cosine, jnp.atleast_2d(jnp.asarray(reference, jnp.float32)), 1.0)


def away_from(reference: Float[Array | np.ndarray, "*b r"]) -> Partial:
    """Returns a target: minus the cosine of the head's input to a reference.

    With the vector of a blank image, this is what sets an image apart from none.

    Args:
      reference: as in `cosine_to`.
    """
    return Partial(_cosine, jnp.atleast_2d(jnp.asarray(reference, jnp.float32)), -1.0)


def length(outputs: Outputs) -> Float[Array, " b"]:
    """Returns the length of the head's input, a target that needs no class.

    Its gradient is the direction of the vector itself. This is the target of models
    without classes unless another one is given. It says nothing of a model that ends in
    a norm with equal factors, which makes all vectors equally long.
    """
    return jnp.linalg.norm(outputs.pre_logits.astype(jnp.float32), axis=-1)


def resolved(model: Model, count: int, target: Any) -> Partial:
    """Turns a target into a function of `Outputs` whose arrays JAX can cut and trace.

    Args:
      model: the model.
      count: number of images.
      target: class indices; None for the class with the largest logit of each image,
        or, without classes, for `length`; or a function. Arrays of a
        `jax.tree_util.Partial` with a row for each image are cut where images are
        computed a few at a time.

    Raises:
      UserError: the model has no such class, or the number of classes is not that of
        the images.
    """
    if isinstance(target, Partial):
        return target
    if callable(target):
        return Partial(target)
    a = model.architecture
    if target is None:
        if model.outputs == NUMBERS and a.num_classes:
            raise UserError(
                "this model's outputs are plain numbers, so it predicts no class: pass "
                "target=…, the index of an output or a function"
            )
        return Partial(_largest if a.num_classes else length)
    return Partial(_chosen, _classes(a.num_classes, count, target))


def value_of(target: Partial, outputs: Outputs) -> Float[Array, " b"]:
    """Computes a target, a number for each image.

    Raises:
      UserError: the function returns another shape.
    """
    value = jnp.asarray(target(outputs))
    if value.shape != (len(outputs.logits),):
        raise UserError(
            f"the target has shape {value.shape}; expected ({len(outputs.logits)},), a "
            "number for each image"
        )
    return value


def _classes(num_classes: int, count: int, target: Any) -> Int[Array, " b"]:
    found = np.asarray(target)
    if not np.issubdtype(found.dtype, np.integer) or found.shape not in ((), (count,)):
        raise UserError(
            f"target={target!r}: expected the index of a class, one for each of "
            f"{count} images, a function of Outputs, or None"
        )
    if not num_classes:
        raise UserError(
            "this model has no classes: as target pass a function, such as "
            "inspect.cosine_to(features of another image), or None"
        )
    if wrong := sorted({int(x) for x in found.flat if not 0 <= x < num_classes}):
        raise UserError(
            f"target={wrong}: the model has {num_classes} classes; expected indices "
            f"from 0 to {num_classes - 1}"
        )
    return jnp.broadcast_to(jnp.asarray(found, jnp.int32), (count,))


def _largest(outputs: Outputs) -> Float[Array, " b"]:
    return _chosen(jnp.argmax(outputs.logits, axis=-1), outputs)


def _chosen(classes: Int[Array, " b"], outputs: Outputs) -> Float[Array, " b"]:
    return jnp.take_along_axis(outputs.logits, classes[:, None], axis=-1)[:, 0]


def _cosine(reference, sign, outputs: Outputs) -> Float[Array, " b"]:
    x = outputs.pre_logits.astype(jnp.float32)
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(reference, axis=-1)
    return sign * (x * reference).sum(axis=-1) / norms
