"""Exact evaluation of a classifier: each example counts once, at any batch size."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from vit_jax import sharding
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.protocol import Evaluator, Params, Subject, Watch
from vit_jax.models import PatchModel
from vit_jax.objectives.losses import LOSSES, to_targets

Sums = dict[str, Array]


def make_eval_step(
    model: PatchModel,
    preprocessing: Preprocessing,
    mesh: Mesh,
    *,
    loss: str,
    per_class: bool = False,
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
      per_class: also sum by class.

    Returns:
      Sums on every device: `loss` float32; `examples`, `bad_images`, `top1`, `top5`
      int32 (`top5`: one of the five most probable classes is right; with fewer than
      five classes, one of them all);
      with `per_class` also `class_examples` and `class_right` int32 [classes] (top-1,
      over the examples that have the class among their labels).
    """
    num_classes = model.architecture.num_classes
    loss_fn = LOSSES[loss]
    placed = sharding.PlacedModel(model, mesh)

    def eval_step(params: Any, batch: Mapping[str, Array]) -> Sums:
        logits = placed(params, preprocessing.normalize(batch["image"]))
        targets = to_targets(batch["label"], num_classes)
        counts = batch["mask"] > 0
        _, best = jax.lax.top_k(logits, min(5, num_classes))
        right = jnp.take_along_axis(targets, best, axis=-1) > 0
        top1, top5 = right[:, 0] & counts, right.any(axis=-1) & counts
        sums = {
            # `where` rather than a product: NaN × 0 from a masked row would be NaN.
            "loss": jnp.sum(jnp.where(counts, loss_fn(logits, targets), 0.0)),
            "examples": jnp.sum(counts, dtype=jnp.int32),
            "top1": jnp.sum(top1, dtype=jnp.int32),
            "top5": jnp.sum(top5, dtype=jnp.int32),
            "bad_images": jnp.sum(batch["bad"], dtype=jnp.int32),
        }
        if per_class:
            labelled = (targets > 0) & counts[:, None]
            sums["class_examples"] = jnp.sum(labelled, axis=0, dtype=jnp.int32)
            hits = labelled & top1[:, None]
            sums["class_right"] = jnp.sum(hits, axis=0, dtype=jnp.int32)
        return sums

    return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


class Classification(Evaluator):
    """Loss, top-1 and top-5 accuracy; with `per_class`, also each class's accuracy.

    `python -m vit_jax.evaluate` and every training run use this evaluator.
    """

    better: ClassVar = {"loss": -1.0, "top1": 1.0, "top5": 1.0}

    def __init__(
        self,
        subject: Subject,
        data: Data,
        loss: str = "softmax",
        per_class: bool = False,
    ):
        self._examples = data.examples(subject)
        self._step: Any = make_eval_step(
            subject.model,
            subject.preprocessing,
            subject.mesh,
            loss=loss,
            per_class=per_class,
        )

    def lower(self, params: Params) -> jax.stages.Lowered:
        """Lowers the step; it is not yet compiled."""
        return self._step.lower(params, self._examples.abstract_batch())

    def compile(self, params: Params) -> None:
        """Compiles the step."""
        self._step = self.lower(params).compile()

    def __call__(self, params: Params, watch: Watch = iter) -> dict[str, Any]:
        """Returns `loss`, `top1`, `top5`, `examples`, `bad_images`, "top1/CLASS"."""
        numbers = self.measure(params, watch)
        counts = numbers.pop("class_examples", ())
        right = numbers.pop("class_right", ())
        names = self._examples.source.class_names
        return numbers | {
            f"top1/{name}": float(hits / count)
            for name, count, hits in zip(names, counts, right, strict=False)
            if count
        }

    def measure(self, params: Params, watch: Watch = iter) -> dict[str, Any]:
        """Evaluates all examples and returns the numbers as `means` does."""
        return means(self._examples.sums(self._step, params, watch))


def means(totals: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the sums of `make_eval_step` over all batches into means.

    Returns:
      `loss` (mean), `top1` and `top5` in [0, 1], `examples` (evaluated) and
      `bad_images` (could not be read and do not count); with a per-class step also
      `class_examples` and `class_right`, int64 [classes].
    """
    counted, bad = (int(totals.get(name, 0)) for name in ("examples", "bad_images"))
    result = {
        name: float(totals[name] / counted) if counted else float("nan")
        for name in ("loss", "top1", "top5")
    }
    by_class = {
        name: totals[name]
        for name in ("class_examples", "class_right")
        if name in totals
    }
    return result | {"examples": counted, "bad_images": bad} | by_class
