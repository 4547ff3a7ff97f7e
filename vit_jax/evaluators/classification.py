"""Exact evaluation of a classifier: every example counts once, whatever the batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from vit_jax import sharding
from vit_jax.data.preprocessing import Preprocessing
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
    """The jitted step (params, batch) → sums over the batch's examples.

    A batch has `image` uint8 [b, h, w, c], `mask` float32 [b] (0 = padding, or an image
    that could not be read), `bad` int32 [b] (1 = could not be read) and `label`: int32
    [b], or for several labels an image multi-hot float32 [b, classes]. A prediction is
    right when its class is among the labels.

    Args:
      model: how its parameters are used; they are an argument of the step.
      preprocessing: its `normalize` runs on the device.
      mesh: the devices that a batch is spread over.
      loss: a name of `LOSSES`.
      per_class: also sum by class.

    Returns:
      Sums on every device: `loss` float32; `examples`, `bad_images`, `top1`, `top5`
      int32 (`top5`: one of the five most probable classes is right, or of all if there
      are fewer);
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
            # Not a product with the mask: a NaN in a row that does not count is no NaN.
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


def evaluate(
    eval_step: Callable[[Any, Mapping[str, Array]], Sums],
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    examples: int,
) -> dict[str, Any]:
    """Runs over all batches once.

    Args:
      eval_step: of `make_eval_step`.
      params: on the devices of the mesh.
      batches: this process's rows, of `vit_jax.data.loading.batches.eval_batches`.
      mesh: that of the step.
      examples: how many examples the data have. Fewer or more in the batches are a bug,
        and raise AssertionError.

    Returns:
      `loss` (mean), `top1` and `top5` in [0, 1], `examples` (evaluated) and
      `bad_images` (could not be read and do not count); with a per-class step also
      `class_examples` and `class_right`, int64 [classes].
    """
    totals: dict[str, Any] = {}
    waiting: Sums | None = None
    for rows in batches:
        # Which examples they are is not the step's concern.
        step_rows = {name: x for name, x in rows.items() if name != "index"}
        batch = sharding.place(step_rows, mesh)
        sums = eval_step(params, batch)
        # The sums of one batch are fetched while the next is being computed.
        _add(totals, waiting)
        waiting = sums
    _add(totals, waiting)
    counted, bad = (int(totals.get(name, 0)) for name in ("examples", "bad_images"))
    assert counted + bad == examples, (
        f"evaluated {counted} examples and skipped {bad}, but the data have {examples}"
    )
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


def abstract_batch(
    preprocessing: Preprocessing, rows: int, mesh: Mesh, *, num_classes: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch of an evaluation.

    Args:
      preprocessing: of the images.
      rows: number of examples, padding included.
      mesh: the devices.
      num_classes: width of the labels where an image may have several; 0 = one label.
    """
    columns = {
        "image": ((*preprocessing.image_size, preprocessing.channels), jnp.uint8),
        "label": ((num_classes,), jnp.float32) if num_classes else ((), jnp.int32),
        "mask": ((), jnp.float32),
        "bad": ((), jnp.int32),
    }
    return sharding.abstract_batch(columns, rows, mesh)


def padded_batch_size(batch_size: int, mesh: Mesh) -> int:
    """The next size that can be spread over the mesh."""
    parts = sharding.batch_parts(mesh)
    return -(-batch_size // parts) * parts


def _add(totals: dict[str, Any], sums: Sums | None):
    """Adds in float64 and int64: float32 would lose examples of a large set."""
    for name, value in jax.device_get(sums or {}).items():
        wide = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
        totals[name] = totals.get(name, 0) + value.astype(wide)
