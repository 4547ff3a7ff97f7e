"""Evaluations of one model at several patch sizes."""

from collections.abc import Iterable
from typing import Any

from vit_jax.config import Config
from vit_jax.config.flexible import not_dividing, read_size, size_name
from vit_jax.errors import Problems
from vit_jax.evaluators.choosing import EvaluatorRow, own_kind
from vit_jax.models import PatchModel, ViTOrMixer
from vit_jax.models.flexible import at_patch_size, why_not_flexible
from vit_jax.models.outputs import plain_loss
from vit_jax.words import times


def own_options(config: Config, kind: str) -> dict[str, Any]:
    """Returns the options of the evaluator of a run's own labels, of this kind."""
    if kind != "classification":
        return {}
    return {"loss": plain_loss(config.loss), "per_class": config.per_class}


def rows_of_sizes(
    config: Config, architecture: ViTOrMixer, outputs: str, taken: Iterable[str]
) -> list[EvaluatorRow]:
    """Makes the rows that repeat a run's own evaluation at other patch sizes.

    Args:
      config: the run's; `flexible.eval_patch_sizes` are valid.
      architecture: that of its model.
      outputs: what they mean, a key of `MEANINGS`.
      taken: names of other rows.

    Raises:
      UserError: the run evaluates no labels of its own, or names are taken.
    """
    sizes = [read_size(value) for value in config.flexible.eval_patch_sizes]
    names = {f"patch_{size_name(size)}": size for size in sizes if size}
    problems = []
    if names and not architecture.num_classes:
        problems.append(
            "flexible.eval_patch_sizes has no effect, because the model has no head; "
            "leave it out, and set `patch_size` in rows of evaluators"
        )
    problems += [
        f"evaluators.{name}: flexible.eval_patch_sizes makes an evaluator of this "
        "name; choose another"
        for name in taken
        if name in names
    ]
    if problems:
        raise Problems(*problems)
    kind = own_kind(outputs)
    options = own_options(config, kind)
    return [
        EvaluatorRow(name, kind, config.eval_every, {}, options, size)
        for name, size in names.items()
    ]


def check_sizes(rows: Iterable[EvaluatorRow], architecture: ViTOrMixer) -> None:
    """Rejects rows whose patch size the model cannot have.

    Raises:
      UserError: lists them.
    """
    problems, image = [], architecture.image_size
    for row in rows:
        if row.patch_size is None or row.patch_size == architecture.patch_size:
            continue
        where = f"evaluators.{row.name}: patch_size={row.patch_size}: "
        if reason := why_not_flexible(architecture):
            problems.append(where + reason)
        elif lines := not_dividing([row.patch_size], image):
            problems.append(
                f"{where}images of {times(image)} pixels cannot be cut into patches "
                f"of {lines[0]}"
            )
    if problems:
        raise Problems(*problems)


def model_at(
    model: PatchModel, size: tuple[int, int] | None, posemb_resize: str
) -> PatchModel:
    """Returns the module that computes the same parameters at another patch size.

    Args:
      model: the module.
      size: the (height, width) of its patches; None = as they are.
      posemb_resize: the method for positions of a model without flexible patch sizes.
    """
    if size is None:
        return model
    found = at_patch_size(model.architecture, size, posemb_resize)
    return model.clone(architecture=found)
