"""Errors of a model whose output is a plain number, such as an age."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.protocol import Evaluator, Params, Subject, Watch
from vit_jax.models.outputs import MEANINGS, NUMBERS
from vit_jax.words import shortened


class Regression(Evaluator):
    """Mean absolute and mean squared error, where class names are numbers."""

    better: ClassVar = {"mean_absolute_error": -1.0, "mean_squared_error": -1.0}

    def __init__(self, subject: Subject, data: Data):
        """Makes the evaluator.

        Raises:
          UserError: the outputs are no plain numbers, or several; or a label is not a
            number.
        """
        if subject.outputs != NUMBERS:
            raise UserError(
                f"the model's outputs are {MEANINGS[subject.outputs].words}, so they "
                "have no error; use the evaluator 'classification'. If they are plain "
                "numbers after all, say so: --outputs=numbers"
            )
        self._examples = data.examples(subject)
        outputs = subject.architecture.num_classes
        if outputs != 1:
            raise UserError(
                f"the model gives {outputs:,} plain numbers for an image, of which a "
                "label of these data can be compared with one only"
            )
        values = jnp.asarray(_values(self._examples.source))
        placed, normalize = subject.placed_model, subject.preprocessing.normalize

        def step(params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
            numbers = placed(params, normalize(batch["image"]))[:, 0]
            error = numbers.astype(jnp.float32) - values[batch["label"]]
            counts = batch["mask"] > 0
            # `where` rather than a product: NaN × 0 from a masked row would be NaN.
            return {
                "absolute": jnp.sum(jnp.where(counts, jnp.abs(error), 0.0)),
                "squared": jnp.sum(jnp.where(counts, jnp.square(error), 0.0)),
                "examples": jnp.sum(counts, dtype=jnp.int32),
                "bad_images": jnp.sum(batch["bad"], dtype=jnp.int32),
            }

        replicated = sharding.replicated(subject.mesh)
        self._step: Any = jax.jit(step, out_shardings=replicated)

    def compile(self, params: Params) -> None:
        """Compiles the step."""
        batch = self._examples.abstract_batch()
        self._step = self._step.lower(params, batch).compile()

    def __call__(self, params: Params, watch: Watch = iter) -> dict[str, Any]:
        """Returns `mean_absolute_error`, `mean_squared_error` and the counts."""
        totals = self._examples.sums(self._step, params, watch)
        examples = int(totals["examples"])
        return {
            "mean_absolute_error": float(totals["absolute"] / examples),
            "mean_squared_error": float(totals["squared"] / examples),
            "examples": examples,
            "bad_images": int(totals["bad_images"]),
        }


def _values(source: Any) -> np.ndarray:
    """Reads the class names as numbers, float32 [classes].

    Raises:
      UserError: an image may have several labels, or a name is not a finite number.
    """
    if source.multi_label:
        raise UserError(
            "the model gives a plain number for an image, but an image of these data "
            "may have several labels; pass data with one number per image"
        )
    names = tuple(source.class_names or ())
    values = [_number(name) for name in names]
    wrong = [name for name, value in zip(names, values, strict=True) if value is None]
    if wrong or not names:
        found = (
            f"such as {shortened(wrong, repr, most=3)}" if names else "without names"
        )
        raise UserError(
            "the model gives plain numbers, but the labels of these data are classes "
            f"{found}: neither an accuracy nor an error can be computed. Pass data "
            "whose classes are called by their numbers"
        )
    return np.array(values, np.float32)


def _number(name: str) -> float | None:
    try:
        value = float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
