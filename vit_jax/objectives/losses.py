"""Classification losses of one example each; training and evaluation share them."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def softmax_xent(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Softmax cross-entropy in float32; targets are a distribution over the classes."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def sigmoid_xent(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Sigmoid cross-entropy in float32, summed over the classes.

    Each class is a yes-or-no question of its own, so several may be right. The sum
    over classes is the convention of the ViT paper's large-scale pretraining; a mean
    would divide the gradients by the number of classes.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
    return losses.sum(axis=-1)


def smooth_labels(targets: Float[Array, "b k"], amount: float) -> Float[Array, "b k"]:
    """(1 − amount)·targets + amount/K, as in timm and the DeiT recipe."""
    return targets * (1.0 - amount) + amount / targets.shape[-1]


def to_targets(labels: Array, num_classes: int) -> Float[Array, "b k"]:
    """Class indices [b] become one-hot rows; multi-hot rows [b, K] stay as they are."""
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return labels.astype(jnp.float32)


LOSSES = {"softmax": softmax_xent, "sigmoid": sigmoid_xent}
