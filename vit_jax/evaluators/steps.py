"""Evaluation steps on the devices: sums over a batch, and rows for the host."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from vit_jax import sharding
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import PatchModel
from vit_jax.models.outputs import EXCLUSIVE, INDEPENDENT, show
from vit_jax.objectives.losses import LOSSES, to_targets

Sums = dict[str, Array]


class Counted(NamedTuple):
    """The counts of a step besides loss, top-1 and top-5.

    Attributes:
      per_class: examples and right predictions of each class.
      predictions: label and prediction of every example, for a confusion matrix.
      several: yes and no of each class, as where an image may have several labels.
      scores: with `several`, the scores of every example and class.
      outputs: with `several`, what the outputs mean; a key of `MEANINGS`.
      threshold: with `several`, a class is predicted if its probability is above.
    """

    per_class: bool = False
    predictions: bool = False
    several: bool = False
    scores: bool = False
    outputs: str = EXCLUSIVE
    threshold: float = 0.5


def make_eval_step(
    model: PatchModel,
    preprocessing: Preprocessing,
    mesh: Mesh,
    *,
    loss: str,
    per_class: bool = False,
    counted: Counted | None = None,
    shift: np.ndarray | None = None,
) -> jax.stages.Wrapped:
    """Makes the jitted step (params, batch) → sums over the batch's examples.

    A batch has `image` uint8 [b, h, w, c], `mask` float32 [b] (0 = padding, or an image
    that could not be read), `bad` int32 [b] (1 = could not be read) and `label`: int32
    [b], or multi-hot float32 [b, classes] if an image can have several labels. A
    prediction is right if its class is among the labels.

    Args:
      model: the module; its parameters are an argument of the step.
      preprocessing: its `normalize` runs on the device.
      mesh: the devices that a batch is sharded over.
      loss: a name in `LOSSES`.
      per_class: short for `Counted(per_class=True)`.
      counted: everything else that is counted.
      shift: what is added to the outputs before anything is judged [classes].

    Returns:
      Sums on every device: `loss` float32; `examples`, `bad_images`, `top1`, `top5`
      int32 (`top5`: one of the five most probable classes is right; with fewer than
      five classes, one of them all). A single output that is a yes or no has no `top5`,
      and its `top1` counts the examples on the right side of the threshold.

      With `per_class` or `several` also `class_examples` and `class_right` int32
      [classes] (top-1, over the examples that have the class among their labels). With
      `several` also `labelled` (examples with a label), `exact` (all classes right),
      `class_predicted` and `class_hits` (predicted, and rightly, by the threshold).

      "columns" holds arrays with a row per example: with `predictions` `label` and
      `predicted` (−1 = does not count) int32 [b]; with `scores` `scores` float32 and
      `positive` bool [b, classes] and `counts` bool [b].
    """
    counted = counted or Counted(per_class)
    num_classes = model.architecture.num_classes
    loss_fn = LOSSES[loss]
    placed = sharding.PlacedModel(model, mesh)
    yes_or_no = counted.several and _is_yes_or_no(num_classes, counted.outputs)

    def eval_step(params: Any, batch: Mapping[str, Array]) -> Any:
        logits = placed(params, preprocessing.normalize(batch["image"]))
        if shift is not None:
            logits += jnp.asarray(shift, jnp.float32)[None]
        targets = to_targets(batch["label"], num_classes)
        counts = batch["mask"] > 0
        _, best = jax.lax.top_k(logits, min(5, num_classes))
        right = jnp.take_along_axis(targets, best, axis=-1) > 0
        top1, top5 = right[:, 0] & counts, right.any(axis=-1) & counts
        sums: dict[str, Any] = {
            # `where` rather than a product: NaN × 0 from a masked row would be NaN.
            "loss": jnp.sum(jnp.where(counts, loss_fn(logits, targets), 0.0)),
            "examples": jnp.sum(counts, dtype=jnp.int32),
            "top1": jnp.sum(top1, dtype=jnp.int32),
            "top5": jnp.sum(top5, dtype=jnp.int32),
            "bad_images": jnp.sum(batch["bad"], dtype=jnp.int32),
        }
        if counted.per_class or counted.several:
            labelled = (targets > 0) & counts[:, None]
            sums["class_examples"] = jnp.sum(labelled, axis=0, dtype=jnp.int32)
            hits = labelled & top1[:, None]
            sums["class_right"] = jnp.sum(hits, axis=0, dtype=jnp.int32)
        if counted.several:
            sums |= _several(logits, targets > 0, counts, counted)
        if yes_or_no:
            del sums["top5"]
            sums |= {"top1": sums["exact"], "class_right": sums["class_hits"]}
        columns = {}
        if counted.predictions:
            columns["label"] = jnp.argmax(targets, axis=-1).astype(jnp.int32)
            columns["predicted"] = jnp.where(counts, best[:, 0], -1)
        if counted.several and counted.scores:
            columns |= {
                "scores": _scores(logits, counted.outputs),
                "positive": targets > 0,
                "counts": counts,
            }
        return sums | ({"columns": columns} if columns else {})

    return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


def _is_yes_or_no(num_classes: int, outputs: str) -> bool:
    return num_classes == 1 and outputs == INDEPENDENT


def _several(logits: Array, positive: Array, counts: Array, counted: Counted) -> Sums:
    predicted = show(counted.outputs, logits) > counted.threshold
    exact = (predicted == positive).all(axis=-1) & counts

    def by_class(which: Array) -> Array:
        return jnp.sum(which & counts[:, None], axis=0, dtype=jnp.int32)

    return {
        "labelled": jnp.sum(positive.any(axis=-1) & counts, dtype=jnp.int32),
        "exact": jnp.sum(exact, dtype=jnp.int32),
        "class_predicted": by_class(predicted),
        "class_hits": by_class(predicted & positive),
    }


def _scores(logits: Array, outputs: str) -> Array:
    """Returns numbers that rank examples as their probabilities do, with fewer ties."""
    logits = logits.astype(jnp.float32)
    return jax.nn.log_softmax(logits) if outputs == EXCLUSIVE else logits
