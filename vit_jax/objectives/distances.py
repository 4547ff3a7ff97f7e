"""Distances between a student's outputs and a teacher's, for each example.

All are computed in float32 from logits [b, k]. The teacher comes second; gradients are
those of the student.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.outputs import EXCLUSIVE, INDEPENDENT
from vit_jax.objectives.losses import sigmoid_xent, softmax_xent

_EPSILON = 1e-12  # under the roots, whose derivative at 0 is infinite


def softmax_kl(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    *,
    temperature: float = 1.0,
) -> Float[Array, " b"]:
    """Computes T² KL(softmax(teacher / T) ‖ softmax(student / T)) (arXiv:1503.02531).

    The factor keeps the size of the gradients while T changes.
    """
    student, teacher = (
        jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
        for x in (student, teacher)
    )
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def sigmoid_kl(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    *,
    temperature: float = 1.0,
) -> Float[Array, " b"]:
    """Computes T² times the KL of a yes or no for each class, summed over the classes.

    This is `softmax_kl` where any number of classes may be right.
    """
    student, teacher = (x.astype(jnp.float32) / temperature for x in (student, teacher))
    yes = jax.nn.sigmoid(teacher)
    divergence = yes * (jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student))
    divergence += (1 - yes) * (
        jax.nn.log_sigmoid(-teacher) - jax.nn.log_sigmoid(-student)
    )
    return temperature**2 * jnp.sum(divergence, axis=-1)


def softmax_hard(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    *,
    smoothing: float = 0.0,
) -> Float[Array, " b"]:
    """Computes the cross-entropy of the class that the teacher predicts.

    With `smoothing`, it is KL(targets ‖ student), and the other K − 1 classes share
    that part of the target evenly, as in big_vision.
    """
    classes = teacher.shape[-1]
    best = jax.nn.one_hot(jnp.argmax(teacher, axis=-1), classes, dtype=jnp.float32)
    if not smoothing:
        return softmax_xent(student, best)
    targets = (1 - smoothing) * best + smoothing / (classes - 1) * (1 - best)
    entropy = -jnp.sum(targets * jnp.log(jnp.maximum(targets, 1e-8)), axis=-1)
    return softmax_xent(student, targets) - entropy


def sigmoid_hard(
    student: Float[Array, "b k"], teacher: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Computes the cross-entropy of the teacher's yes or no for each class, summed."""
    return sigmoid_xent(student, (teacher > 0).astype(jnp.float32))


def l2(
    student: Float[Array, "b k"], teacher: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Computes the sum of the squared differences."""
    difference = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.sum(difference**2, axis=-1)


def euclidean(
    student: Float[Array, "b k"], teacher: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Computes √(sum of the squared differences + 1e-12)."""
    return jnp.sqrt(l2(student, teacher) + _EPSILON)


def logsoftmax_euclidean(
    student: Float[Array, "b k"], teacher: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Computes the Euclidean distance of the logarithms of the probabilities."""
    return euclidean(
        *(jax.nn.log_softmax(x.astype(jnp.float32)) for x in (student, teacher))
    )


def same_class(
    student: Float[Array, "b k"], teacher: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Returns 1 where both predict the same class, else 0 (agree@1)."""
    same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    return same.astype(jnp.float32)


def same_answers(
    student: Float[Array, "b k"], teacher: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Returns the share of the classes for which both answer the same yes or no."""
    return jnp.mean((student > 0) == (teacher > 0), axis=-1, dtype=jnp.float32)


Distance = Callable[..., Float[Array, " b"]]

# Name → the function for each meaning of the outputs; others cannot be compared so.
DISTANCES: Mapping[str, Mapping[str, Distance]] = {
    "kl": {EXCLUSIVE: softmax_kl, INDEPENDENT: sigmoid_kl},
    "hard": {EXCLUSIVE: softmax_hard},
    "l2": {EXCLUSIVE: l2, INDEPENDENT: l2},
    "euclidean": {EXCLUSIVE: euclidean, INDEPENDENT: euclidean},
    "logsoftmax_euclidean": {EXCLUSIVE: logsoftmax_euclidean},
}
