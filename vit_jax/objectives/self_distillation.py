"""Self-distillation without labels (DINO, arXiv:2104.14294).

A student sees several random views of an image, two large and some small ones; a
teacher, the moving average of the student, sees the large ones. The student learns to
predict the teacher's output for every other view of the same image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vit_jax.checkpoints.description import MODEL
from vit_jax.errors import Problems
from vit_jax.models.projection import ProjectionHead
from vit_jax.objectives import self_distillation_checks as checks
from vit_jax.objectives.classification import init_model
from vit_jax.objectives.flexible import at, drawn
from vit_jax.objectives.initialisation import of_pytorch, redrawn
from vit_jax.objectives.inputs import normalised
from vit_jax.objectives.multi_crop import CropOptions, make_multi_crop
from vit_jax.objectives.protocol import (
    Batch,
    Context,
    Given,
    Objective,
    Params,
    Sums,
    served,
)
from vit_jax.sharding import PlacedModel

Number = float | int
HEAD = "projection_head"  # the subtree of its parameters, beside the model's


class SelfDistillation(Objective):
    """An objective: predict an averaged teacher's output for other views of an image.

    The loss is the mean, over the two large views that the teacher sees and all other
    views that the student sees, of the cross-entropy −Σ q log p, with q = softmax((t −
    centre) / teacher_temp) and p = softmax(s / student_temp). The teacher is the
    objective's state, and the model that is evaluated, saved and loaded.

    It also reports `teacher_entropy`, the mean entropy of q in nats, which is near 0 or
    near log(out_dim) if the features have collapsed; `teacher_temp` and
    `teacher_momentum`.
    """

    reads = ()
    flexible = True  # student and teacher have the same patch size

    def __init__(
        self,
        given: Given,
        out_dim: int = 65_536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        nlayers: int = 3,
        norm_last_layer: bool = True,
        freeze_last_layer: int = 1,
        student_temp: Number = 0.1,
        teacher_temp: Number = 0.04,
        warmup_teacher_temp: Number = 0.04,
        warmup_teacher_temp_epochs: int = 0,
        momentum_teacher: Number = 0.996,
        center_momentum: Number = 0.9,
        global_crops_scale: Sequence[Number] = (0.4, 1.0),
        local_crops_number: int = 8,
        local_crops_scale: Sequence[Number] = (0.05, 0.4),
        local_crops_size: Any = 0,
        first_chain: str = "",
        second_chain: str = "",
        local_chain: str = "",
    ):
        """Makes the objective; names and defaults are those of the published code.

        Args:
          given: the run.
          out_dim: number of outputs of the projection head.
          hidden_dim: width of its hidden layers.
          bottleneck_dim: width of its vectors of length 1, before the last layer.
          nlayers: number of linear layers before the last.
          norm_last_layer: fix the length of each output's weights at 1.
          freeze_last_layer: number of epochs in which the last layer does not change.
          student_temp: temperature of the student's outputs.
          teacher_temp: temperature of the teacher's outputs after their warm-up.
          warmup_teacher_temp: their temperature in the first epoch.
          warmup_teacher_temp_epochs: number of epochs in which it changes, linearly
            from epoch to epoch.
          momentum_teacher: share of the teacher that the first update keeps; it rises
            to 1 at the end of the run along half a cosine.
          center_momentum: share of the centre that each update keeps.
          global_crops_scale: see `CropOptions`, like all that follow.
          local_crops_number: number of small views.
          local_crops_scale: share of the image in a small view.
          local_crops_size: size of a small view.
          first_chain: operations that make the first large view.
          second_chain: operations that make the second large view.
          local_chain: operations that make a small view.

        Raises:
          UserError: lists all that is impossible.
        """
        self._given = given
        problems = checks.wrong_options(
            given,
            sizes={
                "out_dim": out_dim,
                "hidden_dim": hidden_dim,
                "bottleneck_dim": bottleneck_dim,
                "nlayers": nlayers,
            },
            temperatures={
                "student_temp": student_temp,
                "teacher_temp": teacher_temp,
                "warmup_teacher_temp": warmup_teacher_temp,
            },
            momenta={
                "momentum_teacher": momentum_teacher,
                "center_momentum": center_momentum,
            },
            epochs={
                "warmup_teacher_temp_epochs": warmup_teacher_temp_epochs,
                "freeze_last_layer": freeze_last_layer,
            },
        )
        options = CropOptions(
            *(global_crops_scale, local_crops_number, local_crops_scale),
            *(local_crops_size, first_chain, second_chain, local_chain),
        )
        self._crops = make_multi_crop(given, options, problems)
        problems += checks.wrong_patch_sizes(given, self._crops)
        if problems:
            raise Problems(*problems)
        self.inputs = self._crops.inputs
        model = given.model.clone(posemb_resize=given.config.posemb_resize)
        self._model = PlacedModel(model, given.mesh)
        self.head = ProjectionHead(
            out_dim,
            hidden_dim,
            bottleneck_dim,
            nlayers,
            fixed_norm=norm_last_layer,
            dtype=given.model.dtype,
        )
        self._project = PlacedModel(self.head, given.mesh)
        self._student_temp, self._centre_momentum = student_temp, center_momentum
        self._first_momentum = momentum_teacher
        # The first step of each epoch after the first, until the warm-up ends.
        self._warmup = [
            checks.first_step(given, epoch)
            for epoch in range(1, warmup_teacher_temp_epochs + 1)
        ]
        warm = np.linspace(
            warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs
        )
        self._temperatures = np.append(warm, teacher_temp).astype(np.float32)
        if freeze_last_layer:
            start = checks.first_step(given, freeze_last_layer)
            self.groups = {rf"{HEAD}/last_layer/.*": {"begin": start}}

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws model and head at random, as the published code does."""
        model_key, head_key, key = jax.random.split(key, 3)
        features = jnp.zeros((1, self._given.architecture.width))
        head = self.head.init(head_key, features)["params"]
        return drawn_as_published(init_model(self._given, model_key), key) | {
            HEAD: head
        }

    def init_state(self, params: Params) -> Any:
        """Starts the teacher as a copy of the student, and the centre at 0."""
        model = {name: x for name, x in params.items() if name != HEAD}
        centre = jnp.zeros(self.head.outputs)
        return {MODEL: model, HEAD: params[HEAD], "centre": centre}

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], context: Context
    ) -> tuple[Sums, Any]:
        """Sums the mean cross-entropy of each image's pairs of views."""
        mask, state = batch["mask"], context.state
        crops = self._crops
        choice = context.choice
        both = [crops.large, crops.small]
        student = self._outputs(params, batch, both, choice, key)
        averaged = {**state[MODEL], HEAD: state[HEAD]}
        teacher = self._outputs(averaged, batch, [crops.large], choice)
        temperature = self.temperature(context.step)
        centred = (teacher - state["centre"][None, None]) / temperature
        wanted = jax.nn.log_softmax(centred)
        losses = pair_losses(wanted, jax.nn.log_softmax(student / self._student_temp))
        entropy = -jnp.sum(jnp.exp(wanted) * wanted, axis=-1).mean(axis=1)
        weight = jnp.sum(mask)
        outputs = jnp.einsum("bvk,b->k", teacher, mask, precision="highest")
        return {
            "loss": (jnp.sum(losses * mask), weight),
            "teacher_entropy": (jnp.sum(entropy * mask), weight),
            "teacher_temp": (temperature * weight, weight),
            "teacher_momentum": ((1 - self.pace(context.step)) * weight, weight),
            **drawn(choice, mask),
        }, {"outputs": outputs, "count": teacher.shape[1] * weight}

    def after(self, state: Any, additive: Any, params: Params, step: Array) -> Any:
        """Moves the teacher towards the student, the centre towards the outputs."""
        pace = self.pace(step)

        def moved(teacher: Params, student: Params) -> Params:
            return jax.tree.map(
                lambda t, s: (1 - pace) * t + pace * s, teacher, student
            )

        count, keep = additive["count"], self._centre_momentum
        mean = additive["outputs"] / jnp.where(count > 0, count, 1.0)
        centre = keep * state["centre"] + (1 - keep) * mean
        model = {name: params[name] for name in state[MODEL]}
        return {
            MODEL: moved(state[MODEL], model),
            HEAD: moved(state[HEAD], params[HEAD]),
            "centre": jnp.where(count > 0, centre, state["centre"]),
        }

    def models(self, params: Params, state: Any) -> Mapping[str, Params]:
        """Returns the teacher, and the student for the split "eval_student"."""
        return {"": served(params, state), "student": params}

    def temperature(self, step: Array) -> Float[Array, ""]:
        """Returns the teacher's temperature, which changes from epoch to epoch."""
        epochs = jnp.sum(step >= jnp.asarray(self._warmup, jnp.int32), dtype=jnp.int32)
        return jnp.asarray(self._temperatures)[epochs]

    def pace(self, step: Array) -> Float[Array, ""]:
        """Returns the share of the student in the new teacher: 1 − its momentum."""
        progress = step.astype(jnp.float32) / self._given.config.total_steps
        return 0.5 * (1 - self._first_momentum) * (1 + jnp.cos(jnp.pi * progress))

    def _outputs(
        self,
        params: Params,
        batch: Batch,
        sizes: list[tuple[str, ...]],
        choice: Any,
        key: Array | None = None,
    ) -> Float[Array, "b v k"]:
        """Computes the head's outputs for views: a forward pass for each size of view.

        Args:
          params: of the model and the head.
          batch: the views.
          sizes: for each size, the columns of its views.
          choice: the step's; see `Objective.choice`.
          key: random key for dropout and stochastic depth; without it, nothing is
            dropped.
        """
        features = []
        for number, names in enumerate(sizes):
            if not names:
                continue
            # The views of an image stay together, and so on its device.
            views = jnp.stack([batch[name] for name in names], axis=1)
            images = normalised(
                views.reshape(-1, *views.shape[2:]), self._given.preprocessing
            )
            own = None if key is None else jax.random.fold_in(key, number)
            found = self._model(
                params, images, train=key is not None, key=own, **at(choice)
            )
            features.append(found.reshape(*views.shape[:2], -1))
        return self._project(params[HEAD], jnp.concatenate(features, axis=1))


def pair_losses(
    wanted: Float[Array, "b g k"], found: Float[Array, "b v k"]
) -> Float[Array, " b"]:
    """Computes the mean cross-entropy of all pairs of different views of each image.

    Args:
      wanted: the teacher's log-probabilities for the first g views.
      found: the student's log-probabilities for all v views.
    """
    large, views = wanted.shape[1], found.shape[1]
    # Σ over the other views first: g sums of products instead of g · v.
    others = jnp.sum(found, axis=1, keepdims=True) - found[:, :large]
    pairs = large * (views - 1)
    return -jnp.sum(jnp.exp(wanted) * others, axis=(1, 2)) / pairs


def drawn_as_published(params: Params, key: Key[Array, ""]) -> Params:
    """Draws a model's parameters anew as the published code does.

    Kernels, class token and positions are normal with deviation 0.02 (truncated only at
    a hundred deviations), biases are 0. The patches have PyTorch's default, uniform
    within ±1/√inputs. Norms stay.
    """

    def draw(name: str, x: Array, key: Array) -> Array:
        if name.startswith("patch_embed/"):
            return of_pytorch(x, params["patch_embed"]["kernel"], key)
        if name.endswith("/bias"):
            return jnp.zeros_like(x)
        if x.ndim == 1:  # norms and LayerScale
            return x
        return 0.02 * jax.random.normal(key, x.shape, x.dtype)

    return redrawn(params, key, draw)
