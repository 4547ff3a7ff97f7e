"""Post-hoc logit adjustment: outputs without how common their classes were."""

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.labels import by_output
from vit_jax.evaluators.protocol import Subject
from vit_jax.models.outputs import INDEPENDENT
from vit_jax.named import is_number
from vit_jax.objectives import imbalance


def adjustment(
    amount: float, subject: Subject, data: Data, classes: str
) -> np.ndarray | None:
    """Returns what to add to the outputs: −amount · log π (arXiv:2007.07314, eq. 9).

    Args:
      amount: τ; 0 = nothing is added, and the result is None.
      subject: the model.
      data: π is the share of each class in its `train_split`. For a yes or no per class
        it is the log odds of that share that are subtracted.
      classes: how labels find their outputs; see `by_output`.

    Raises:
      UserError: there is no split for training, or an output has no image in it.
    """
    if not is_number(amount):
        raise UserError(f"logit_adjustment={amount!r}: expected a number, such as 1.0")
    if not amount:
        return None
    if not data.train_split:
        raise UserError(
            f"logit_adjustment={amount}: these data have no split for training, in "
            "which to count the images of each class; name one as train_split"
        )
    source = by_output(data.open_split(data.train_split), subject, classes)
    counts, outputs = source.class_counts(), subject.architecture.num_classes
    names = subject.class_names or source.class_names
    names = tuple(names) or tuple(map(str, range(outputs)))
    if none := imbalance.classes_without(counts, names):
        raise UserError(
            f"logit_adjustment={amount}: in {data.train_split!r}, {none}; leave it out"
        )
    if subject.outputs != INDEPENDENT:
        return -amount * imbalance.log_prior(counts)
    if (counts >= len(source)).any():
        raise UserError(
            f"logit_adjustment={amount}: all images of {data.train_split!r} have the "
            "same class, which has no odds; leave it out"
        )
    return -amount * imbalance.log_odds(counts, float(len(source)))
