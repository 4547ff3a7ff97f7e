"""One update of the parameters: a pure function of state, batch and random key."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from vit_jax import sharding
from vit_jax.config import Config
from vit_jax.objectives.protocol import Batch, Context, Objective
from vit_jax.optim.chain import make_schedule
from vit_jax.optim.guard import skipped_updates
from vit_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    config: Config,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    choice: Hashable = None,
) -> TrainStep:
    """The training step of a resolved config, to be jitted with the state donated.

    It takes the state, a batch and what the objective reads besides (`extra`). A batch
    has the objective's columns, `mask` float32 [b] (the weight of an example; 0 = it
    does not count) and `bad` int32 [b]. The metrics are those of this step alone, so
    that they do not depend on when the run was last interrupted; `bad_images` and,
    where updates can be left out, `skipped_updates` count over the whole run.
    """
    schedule = make_schedule(config)
    update = optax.with_extra_args_support(optimizer).update

    def train_step(
        state: TrainState, batch: Batch, extra: Any = ()
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        bad_images = state.bad_images + jnp.sum(batch["bad"])
        batch, key = objective.prepare(key, batch, choice)
        context = Context(extra, state.objective, state.step, choice)

        def loss_sum(params: Any, batch: Batch, key: Array) -> tuple[Array, Any]:
            sums, additive = objective.loss(params, batch, key, context)
            return sums["loss"][0], (sums, additive)

        (_, (sums, additive)), grads = _gradient(
            loss_sum, state.params, batch, key, steps=config.accum_steps, mesh=mesh
        )
        metrics = {name: total / _divisor(w) for name, (total, w) in sums.items()}
        count = _divisor(sums["loss"][1])
        grads = jax.tree.map(lambda g: g / count, grads)
        rate = schedule(state.step)

        def updated(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
            loss = metrics["loss"]
            directions, opt_state = update(grads, opt_state, params, loss=loss)
            params = jax.tree.map(lambda p, d: p - rate * d, params, directions)
            return params, opt_state

        arguments = (grads, state.opt_state, state.params)
        if config.offload_optimizer:
            params, opt_state = _from_host(updated, arguments, mesh, always=count > 0)
        else:
            params, opt_state = updated(*arguments)
        ema = state.ema
        if config.ema_decay:
            ema = averaged(state.ema, params, _ema_decay(config, state.step))
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate,
            "bad_images": bad_images,
        }
        kept = objective.after(state.objective, additive, params, state.step)
        if (skipped := skipped_updates(opt_state)) is not None:
            metrics["skipped_updates"] = skipped
            good = skipped == skipped_updates(state.opt_state)
            kept = jax.tree.map(
                lambda new, old: jnp.where(good, new, old), kept, state.objective
            )
        state = TrainState(state.step + 1, params, opt_state, bad_images, ema, kept)
        return state, metrics

    return train_step


def _divisor(weight: Array) -> Array:
    """The summed weight of a batch, or 1 if no example of it counts."""
    # Weights may be small, so this is not a maximum with 1.
    return jnp.where(weight > 0, weight, 1.0)


def _gradient(
    loss_sum: Callable[[Any, Batch, Array], tuple[Array, Any]],
    params: Any,
    batch: Batch,
    key: Array,
    *,
    steps: int,
    mesh: Mesh,
) -> Any:
    """The loss of the batch, what comes with it, and its gradient, all as sums.

    Args:
      loss_sum: parameters, a part of the batch and a key → the loss summed over its
        examples, and a tree of other sums.
      params: where the gradient is taken.
      batch: the whole batch.
      key: each microbatch gets one derived from it; a single one gets it itself.
      steps: number of microbatches.
      mesh: the devices.
    """
    gradient = jax.value_and_grad(loss_sum, has_aux=True)
    if steps == 1:
        return gradient(params, batch, key)
    microbatches = jax.lax.with_sharding_constraint(
        jax.tree.map(lambda x: _microbatches(x, steps), dict(batch)),
        sharding.microbatch_sharding(mesh),
    )

    def add(total: Any, microbatch: tuple[Array, Batch]) -> tuple[Any, None]:
        index, rows = microbatch
        part = gradient(params, rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, part), None

    first = jax.tree.map(lambda x: x[0], microbatches)
    shapes = jax.eval_shape(loss_sum, params, first, key), params
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(steps), microbatches))[0]


def _from_host(
    updated: Callable[[Any, Any, Any], tuple[Any, Any]],
    arguments: tuple[Any, Any, Any],
    mesh: Mesh,
    always: Array,
) -> tuple[Any, Any]:
    """The update of an optimiser whose state lies in the memory of the hosts.

    Args:
      updated: gradients, state and parameters → parameters and state.
      arguments: these three.
      mesh: the devices.
      always: True, in a way that the compiler does not see.
    """

    def run(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        opt_state = jax.device_put(opt_state, sharding.shardings(opt_state, mesh))
        params, opt_state = updated(grads, opt_state, params)
        return params, jax.device_put(opt_state, sharding.on_host(opt_state, mesh))

    # In a branch, which is always taken: otherwise all of the state is fetched at the
    # beginning of the step, and lies beside the activations.
    return jax.lax.cond(
        always, run, lambda _, opt_state, params: (params, opt_state), *arguments
    )


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
