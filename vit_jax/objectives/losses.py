"""Per-example losses of class labels, shared by training and evaluation.

A loss takes logits and targets [b, k] and returns [b]. All of them are linear in the
targets, so the loss of a mixture is the mixture of the losses. Keyword-only parameters
are its options: `config.loss_options` (`vit_jax.objectives.training_loss`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Logits = Float[Array, "b k"]
Targets = Float[Array, "b k"]
ByClass = Float[Array, " k"] | None

_TINY = 1e-12  # keeps gradients of powers finite at 0


def softmax_xent(
    logits: Logits, targets: Targets, weights: ByClass = None
) -> Float[Array, " b"]:
    """Computes softmax cross-entropy in float32; targets are class distributions.

    Args:
      logits: the outputs.
      targets: a distribution over the classes.
      weights: factors of the classes' terms; by default 1.
    """
    logits = logits.astype(jnp.float32)
    if weights is None:
        return optax.softmax_cross_entropy(logits, targets)
    return -jnp.sum(weights[None] * targets * jax.nn.log_softmax(logits), axis=-1)


def sigmoid_xent(
    logits: Logits,
    targets: Targets,
    weights: ByClass = None,
    pos_weight: ByClass = None,
) -> Float[Array, " b"]:
    """Computes sigmoid cross-entropy in float32, summed over the classes.

    Each class is a separate yes-or-no question, so several may be right. The ViT
    paper's large-scale pretraining sums over the classes; a mean would divide the
    gradients by the number of classes.

    Args:
      logits: the outputs.
      targets: for each class, how far it is right, from 0 to 1.
      weights: factors of the classes' questions; by default 1.
      pos_weight: factors of the terms of right classes; by default 1.
    """
    logits = logits.astype(jnp.float32)
    if weights is None and pos_weight is None:
        return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)
    yes, no = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
    return _questions(yes, no, targets, weights, pos_weight)


def softmax_focal(
    logits: Logits, targets: Targets, weights: ByClass = None, *, gamma: float = 2.0
) -> Float[Array, " b"]:
    """Computes the focal loss (1 − p)^gamma · −log p of a softmax, in float32.

    arXiv:1708.02002, for classes that exclude each other. With `gamma` 0 it is
    cross-entropy. The arguments are those of `softmax_xent`.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    focus = jnp.maximum(-jnp.expm1(log_p), _TINY) ** gamma
    losses = -targets * focus * log_p
    return jnp.sum(losses if weights is None else weights[None] * losses, axis=-1)


def sigmoid_focal(
    logits: Logits,
    targets: Targets,
    weights: ByClass = None,
    pos_weight: ByClass = None,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Float[Array, " b"]:
    """Computes the focal loss of yes-or-no questions, summed over the classes.

    arXiv:1708.02002: α (1 − p)^gamma · −log p of a right class, and the same with
    1 − α and 1 − p of a wrong one. `alpha` −1 leaves out both factors α and 1 − α. The
    other arguments are those of `sigmoid_xent`.
    """
    logits = logits.astype(jnp.float32)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    yes, no = -log_p * jnp.exp(gamma * log_not_p), -log_not_p * jnp.exp(gamma * log_p)
    if alpha >= 0:
        yes, no = alpha * yes, (1 - alpha) * no
    return _questions(yes, no, targets, weights, pos_weight)


def asymmetric(
    logits: Logits,
    targets: Targets,
    weights: ByClass = None,
    pos_weight: ByClass = None,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    gradient_of_focus: bool = True,
) -> Float[Array, " b"]:
    """Computes the asymmetric loss of several labels, summed over the classes.

    ASL, arXiv:2009.14119: a focal loss with a power each for right and wrong classes,
    in which the probability p of a wrong class counts as max(p − clip, 0). The other
    arguments are those of `sigmoid_xent`. Unlike in the published code, logarithms are
    not cut off at 1e-8, so the gradient never vanishes for a right class.

    Args:
      logits: the outputs.
      targets: for each class, how far it is right, from 0 to 1.
      weights: factors of the classes' questions.
      pos_weight: factors of the terms of right classes.
      gamma_neg: power of the probability of a wrong class.
      gamma_pos: power of 1 − p of a right class.
      clip: what is subtracted from the probability of a wrong class.
      gradient_of_focus: whether the powers have a gradient. The published training
        scripts take them as constants.
    """
    logits = logits.astype(jnp.float32)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    focus_yes = jnp.exp(gamma_pos * log_not_p)
    if clip:
        wrong = jnp.maximum(jax.nn.sigmoid(logits) - clip, 0.0)
        log_not_p = jnp.log1p(-wrong)
        focus_no = jnp.maximum(wrong, _TINY) ** gamma_neg
    else:
        focus_no = jnp.exp(gamma_neg * log_p)
    if not gradient_of_focus:
        focus_yes, focus_no = map(jax.lax.stop_gradient, (focus_yes, focus_no))
    yes, no = -log_p * focus_yes, -log_not_p * focus_no
    return _questions(yes, no, targets, weights, pos_weight)


def _questions(
    yes: Logits,
    no: Logits,
    targets: Targets,
    weights: ByClass,
    pos_weight: ByClass,
) -> Float[Array, " b"]:
    """Adds up yes-or-no questions: `yes` and `no` are the losses of each answer."""
    if pos_weight is not None:
        yes = pos_weight[None] * yes
    losses = targets * yes + (1.0 - targets) * no
    return jnp.sum(losses if weights is None else weights[None] * losses, axis=-1)


def squared_log_partition(logits: Logits) -> Float[Array, " b"]:
    """Computes the z-loss (log Σ exp logits)² of a softmax in float32 (PaLM, §5).

    Its gradient keeps the softmax's normaliser near 1, and the logits from drifting
    (arXiv:2204.02311).
    """
    return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) ** 2


def smooth_labels(targets: Float[Array, "b k"], amount: float) -> Float[Array, "b k"]:
    """Returns (1 − amount)·targets + amount/K, as timm and the DeiT recipe do."""
    return targets * (1.0 - amount) + amount / targets.shape[-1]


def to_targets(labels: Array, num_classes: int) -> Float[Array, "b k"]:
    """Turns class indices [b] into one-hot rows; keeps multi-hot rows [b, K]."""
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return labels.astype(jnp.float32)


# What their outputs mean is said by `vit_jax.models.outputs.MEANINGS`.
LOSSES: dict[str, Callable[..., Any]] = {
    "softmax": softmax_xent,
    "sigmoid": sigmoid_xent,
    "softmax_focal": softmax_focal,
    "sigmoid_focal": sigmoid_focal,
    "asymmetric": asymmetric,
}
