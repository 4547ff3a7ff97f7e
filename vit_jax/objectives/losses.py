"""Per-example classification losses, shared by training and evaluation."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def softmax_xent(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Computes softmax cross-entropy in float32; targets are class distributions."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def sigmoid_xent(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Computes sigmoid cross-entropy in float32, summed over the classes.

    Each class is a separate yes-or-no question, so several may be right. The ViT
    paper's large-scale pretraining sums over the classes; a mean would divide the
    gradients by the number of classes.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
    return losses.sum(axis=-1)


def smooth_labels(targets: Float[Array, "b k"], amount: float) -> Float[Array, "b k"]:
    """Returns (1 − amount)·targets + amount/K, as timm and the DeiT recipe do."""
    return targets * (1.0 - amount) + amount / targets.shape[-1]


def to_targets(labels: Array, num_classes: int) -> Float[Array, "b k"]:
    """Turns class indices [b] into one-hot rows; keeps multi-hot rows [b, K]."""
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return labels.astype(jnp.float32)


LOSSES = {"softmax": softmax_xent, "sigmoid": sigmoid_xent}
