"""The meanings of a model's outputs, and the values that are shown for them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Logits = Float[Array, "*b k"]

EXCLUSIVE = "exclusive"  # an image has one of the classes
INDEPENDENT = "independent"  # an image has or lacks each class, whatever the others
NUMBERS = "numbers"  # the outputs are quantities, such as an age


class Meaning(NamedTuple):
    """One way to read the outputs.

    Attributes:
      words: its description in messages.
      show: outputs → the values to show.
      probability: whether those values are probabilities.
      loss: name of the plain loss that trains such outputs; "" = none of ours.
      other_losses: names of other losses that train them.
    """

    words: str
    show: Callable[[Logits], Logits]
    probability: bool
    loss: str
    other_losses: tuple[str, ...] = ()


def _unchanged(logits: Logits) -> Logits:
    return logits


MEANINGS = {
    EXCLUSIVE: Meaning(
        "classes that exclude each other (softmax)",
        jax.nn.softmax,
        True,
        "softmax",
        ("softmax_focal",),
    ),
    INDEPENDENT: Meaning(
        "a yes or no for each class (sigmoid)",
        jax.nn.sigmoid,
        True,
        "sigmoid",
        ("sigmoid_focal", "asymmetric"),
    ),
    NUMBERS: Meaning("plain numbers", _unchanged, False, ""),
}


def show(outputs: str, logits: Logits) -> Logits:
    """Converts a model's outputs to what is shown: probabilities, or the numbers.

    Args:
      outputs: their meaning, a key of `MEANINGS`.
      logits: the outputs [..., k].
    """
    return MEANINGS[outputs].show(logits.astype(jnp.float32))


def is_probability(outputs: str) -> bool:
    """Returns whether `show` gives probabilities."""
    return MEANINGS[outputs].probability


def of_loss(loss: str) -> str:
    """Returns the meaning of outputs that were trained with this loss."""
    for name, meaning in MEANINGS.items():
        if loss and loss in (meaning.loss, *meaning.other_losses):
            return name
    return EXCLUSIVE


def plain_loss(loss: str) -> str:
    """Returns the cross-entropy of outputs that were trained with this loss.

    Evaluation reports it, so that runs with other losses can be compared.
    """
    others = {
        other: meaning.loss
        for meaning in MEANINGS.values()
        for other in meaning.other_losses
    }
    return others.get(loss, loss)


def check(outputs: str, num_classes: int = 0) -> None:
    """Raises ValueError if the outputs of so many classes cannot mean that.

    With 0 classes, only the name is checked.
    """
    if outputs not in MEANINGS:
        raise ValueError(f"outputs={outputs!r}: choose from {', '.join(MEANINGS)}")
    if readable(outputs, num_classes) != outputs:
        raise ValueError(
            f"outputs={outputs!r}, but the model has a single output, whose "
            "probability would always be 1; choose independent or numbers"
        )


def readable(outputs: str, num_classes: int) -> str:
    """Returns the meaning that a head with so many outputs can have.

    A single output cannot choose between classes: its softmax is always 1. So it is
    read as a yes or no.
    """
    alone = num_classes == 1 and outputs == EXCLUSIVE
    return INDEPENDENT if alone else outputs
