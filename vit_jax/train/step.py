"""One update of the parameters: a pure function of state and batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from vit_jax import sharding
from vit_jax.config import Config
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import PatchModel
from vit_jax.objectives.losses import LOSSES, smooth_labels, to_targets
from vit_jax.objectives.mixing import Examples, make_mixing
from vit_jax.optim.chain import make_schedule
from vit_jax.optim.guard import skipped_updates

Batch = Mapping[str, Array]


class TrainState(NamedTuple):
    """All that changes from step to step. Random keys are derived from `step`."""

    step: Array  # int32 scalar: finished updates, which is also batches consumed
    params: Any
    opt_state: Any
    bad_images: Array  # int32 scalar: training images so far that could not be read
    ema: Any = None  # averages of params; None without `ema_decay`


def make_train_step(
    config: Config,
    model: PatchModel,
    preprocessing: Preprocessing,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The training step of a resolved config, to be jitted with the state donated.

    A batch has `image` uint8 [b, h, w, c], `label` int32 [b] or multi-hot float32
    [b, classes], `mask` float32 [b] (0 = the example does not count) and `bad` int32
    [b]. The metrics are those of this step alone (`bad_images` and, where there are
    any, `skipped_updates`: of the whole run), so that they do not depend on when the
    run was last interrupted. `accuracy` is the mean
    of the targets, before smoothing, at the predicted class: of a mixed example what
    share of it has that label.
    """
    loss_fn, schedule = LOSSES[config.loss], make_schedule(config)
    update = optax.with_extra_args_support(optimizer).update
    num_classes = model.architecture.num_classes
    mixing = make_mixing(config.mixing)
    placement = sharding.MeshPlacement(mesh)
    model = model.clone(placement=placement)

    def loss_sum(params: Any, batch: Batch, key: Array) -> tuple[Array, Array]:
        """Sums over the examples, so that microbatches simply add up."""
        images = batch["image"]
        if mixing is None:  # otherwise they are normalised already
            images = preprocessing.normalize(images)
        params = placement.gather_outside_blocks(params)
        logits: Any = model.apply(
            {"params": params}, images, train=True, rngs={"dropout": key}
        )
        targets = to_targets(batch["label"], num_classes)
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        right = jnp.take_along_axis(targets, best, axis=-1)[:, 0]
        if config.mixing.binary_targets:
            targets = (targets > 0).astype(jnp.float32)
        # Smoothing a mixture is mixing what was smoothed, so it is done here for both.
        losses = loss_fn(logits, smooth_labels(targets, config.label_smoothing))
        return jnp.sum(losses * batch["mask"]), jnp.sum(right * batch["mask"])

    gradient = jax.value_and_grad(loss_sum, has_aux=True)

    def accumulated(params: Any, batch: Batch, key: Array) -> Any:
        if config.accum_steps == 1:
            return gradient(params, batch, key)
        microbatches = jax.lax.with_sharding_constraint(
            jax.tree.map(lambda x: _microbatches(x, config.accum_steps), dict(batch)),
            sharding.microbatch_sharding(mesh),
        )

        def add(total: Any, microbatch: tuple[Array, Batch]) -> tuple[Any, None]:
            index, rows = microbatch
            part = gradient(params, rows, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, part), None

        zero = jnp.zeros((), jnp.float32)
        zeros = ((zero, zero), jax.tree.map(jnp.zeros_like, params))
        indices = jnp.arange(config.accum_steps)
        return jax.lax.scan(add, zeros, (indices, microbatches))[0]

    def train_step(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if mixing is not None:
            key, mixing_key = jax.random.split(key)
            images, targets, weights = mixing(
                mixing_key,
                Examples(
                    preprocessing.normalize(batch["image"]),
                    to_targets(batch["label"], num_classes),
                    batch["mask"],
                ),
            )
            batch = {**batch, "image": images, "label": targets, "mask": weights}
        (loss, right), grads = accumulated(state.params, batch, key)
        # Images that were skipped leave fewer examples than rows; weights may be small.
        count = jnp.sum(batch["mask"])
        count = jnp.where(count > 0, count, 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        rate = schedule(state.step)

        def updated(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
            directions, opt_state = update(grads, opt_state, params, loss=loss / count)
            params = jax.tree.map(lambda p, d: p - rate * d, params, directions)
            return params, opt_state

        def updated_from_host(
            grads: Any, opt_state: Any, params: Any
        ) -> tuple[Any, Any]:
            on_devices = sharding.shardings(opt_state, mesh)
            opt_state = jax.device_put(opt_state, on_devices)
            params, opt_state = updated(grads, opt_state, params)
            on_host = sharding.on_host(opt_state, mesh)
            return params, jax.device_put(opt_state, on_host)

        if config.offload_optimizer:
            # In a branch, which is always taken: otherwise all of the state is fetched
            # at the beginning of the step, and lies beside the activations.
            params, opt_state = jax.lax.cond(
                count > 0,
                updated_from_host,
                lambda _, opt_state, params: (params, opt_state),
                *(grads, state.opt_state, state.params),
            )
        else:
            params, opt_state = updated(grads, state.opt_state, state.params)
        ema = state.ema
        if config.ema_decay:
            ema = averaged(state.ema, params, _ema_decay(config, state.step))
        bad_images = state.bad_images + jnp.sum(batch["bad"])
        metrics = {
            "loss": loss / count,
            "accuracy": right / count,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate,
            "bad_images": bad_images,
        }
        if (skipped := skipped_updates(opt_state)) is not None:
            metrics["skipped_updates"] = skipped
        state = TrainState(state.step + 1, params, opt_state, bad_images, ema)
        return state, metrics

    return train_step


def averaged(ema: Any, params: Any, decay: Any) -> Any:
    """Exponential moving average: decay × `ema` + (1 − decay) × `params`."""
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)


def _ema_decay(config: Config, step: Array) -> Any:
    if not config.ema_warmup:
        return config.ema_decay
    t = step.astype(jnp.float32)
    return jnp.minimum(config.ema_decay, (1 + t) / (10 + t))


def _microbatches(rows: Array, count: int) -> Array:
    """[b, …] → [count, b/count, …], each microbatch with rows of every device.

    Consecutive rows lie on one device: taking every count-th row keeps all devices
    busy with every microbatch and moves no data between them.
    """
    return jnp.moveaxis(rows.reshape(-1, count, *rows.shape[1:]), 1, 0)
