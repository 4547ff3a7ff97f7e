"""One update of the parameters: a pure function of state, batch and random key."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from vit_jax import sharding
from vit_jax.checkpoints.parts import average_key
from vit_jax.config import Config
from vit_jax.objectives.protocol import Batch, Context, Objective
from vit_jax.optim.groups import Groups
from vit_jax.optim.guard import skipped_updates
from vit_jax.optim.schedules import make_schedule
from vit_jax.optim.sharpness import make_gradient_wrap
from vit_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    config: Config,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    groups: Groups,
    mesh: Mesh,
    choice: Hashable = None,
) -> TrainStep:
    """Makes the training step of a resolved config, to be jitted with donated state.

    It takes the state, a batch and the objective's constants (`extra`). A batch has the
    objective's columns, `mask` float32 [b] (the weight of an example; 0 = it does not
    count) and `bad` int32 [b]. The metrics are those of this step alone, so that they
    do not depend on when the run was last interrupted; `bad_images` and, if updates can
    be skipped, `skipped_updates` count over the whole run.
    """
    schedule, wrap = make_schedule(config), make_gradient_wrap(config, groups)
    update = optax.with_extra_args_support(optimizer).update

    def train_step(
        state: TrainState, batch: Batch, extra: Any = ()
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        bad_images = state.bad_images + jnp.sum(batch["bad"])
        batch, key = objective.prepare(key, batch, choice)
        context = Context(extra, state.objective, state.step, choice)

        trained = groups.trained(state.params)

        def loss_sum(trained: Any, batch: Batch, key: Array) -> tuple[Array, Any]:
            params = groups.merged(trained, state.params)
            sums, additive = objective.loss(params, batch, key, context)
            return sums["loss"][0], (sums, additive)

        def gradient(trained: Any) -> tuple[Any, Any]:
            (_, (sums, additive)), grads = _gradient(
                loss_sum, trained, batch, key, steps=config.accum_steps, mesh=mesh
            )
            metrics = {name: total / _divisor(w) for name, (total, w) in sums.items()}
            count = _divisor(sums["loss"][1])
            grads = jax.tree.map(lambda g: g / count, grads)
            grads = _started(groups, grads, state.step)
            return grads, (metrics, additive, count)

        grads, (metrics, additive, count) = wrap(gradient, state.step)(trained)
        rate = schedule(state.step)

        def updated(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
            known = {"loss": metrics["loss"], "step": state.step, "rate": rate}
            directions, opt_state = update(grads, opt_state, params, **known)
            directions = _started(groups, directions, state.step)
            rates = jax.tree.map(
                lambda factor: rate if factor == 1 else rate * factor,
                groups.of("lr", params),
            )
            params = jax.tree.map(lambda p, r, d: p - r * d, params, rates, directions)
            return params, opt_state

        arguments = (grads, state.opt_state, trained)
        if config.offload_optimizer:
            rules = objective.sharding_rules
            trained, opt_state = _from_host(
                updated, arguments, mesh, rules, always=count > 0
            )
        else:
            trained, opt_state = updated(*arguments)
        params = groups.merged(trained, state.params)

        def moved(ema: Any, decay: float) -> Any:
            decay = _ema_decay(config, decay, state.step)
            return groups.merged(averaged(groups.trained(ema), trained, decay), ema)

        ema, averages = state.ema, state.averages
        if config.ema_decay:
            ema = moved(ema, config.ema_decay)
        if config.ema_decays:
            averages = {
                average_key(decay): moved(averages[average_key(decay)], decay)
                for decay in config.ema_decays
            }
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
        step = state.step + 1
        state = TrainState(step, params, opt_state, bad_images, ema, kept, averages)
        return state, metrics

    return train_step


def _started(groups: Groups, tree: Any, step: Array) -> Any:
    """Replaces the gradients or directions of groups that start later by zeros."""
    return jax.tree.map(
        lambda x, start: jnp.where(step >= start, x, 0) if start else x,
        tree,
        groups.of("start", tree),
    )


def _divisor(weight: Array) -> Array:
    """Returns the summed weight of a batch, or 1 if none of its examples count."""
    # Not a maximum with 1, because weights may be small.
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
    """Computes the batch's loss, other sums and the gradient, summed over microbatches.

    Args:
      loss_sum: parameters, a part of the batch and a key → the loss summed over its
        examples, and a tree of other sums.
      params: the parameters to differentiate by.
      batch: the whole batch.
      key: each microbatch gets a key derived from it; a single one gets the key itself.
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
    rules: sharding.Rules,
    always: Array,
) -> tuple[Any, Any]:
    """Updates with an optimiser whose state is in the memory of the hosts.

    Args:
      updated: gradients, state and parameters → parameters and state.
      arguments: gradients, state and parameters.
      mesh: the devices.
      rules: the objective's own rows of the table of shardings.
      always: a condition that is always true, which the compiler cannot know.
    """

    def run(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        opt_state = jax.device_put(
            opt_state, sharding.shardings(opt_state, mesh, rules)
        )
        params, opt_state = updated(grads, opt_state, params)
        return params, jax.device_put(
            opt_state, sharding.on_host(opt_state, mesh, rules)
        )

    # In a branch that is always taken: otherwise the whole state is fetched at the
    # beginning of the step, and takes memory beside the activations.
    return jax.lax.cond(
        always, run, lambda _, opt_state, params: (params, opt_state), *arguments
    )


def averaged(ema: Any, params: Any, decay: Any) -> Any:
    """Computes the moving average decay × `ema` + (1 − decay) × `params`."""
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)


def _ema_decay(config: Config, decay: float, step: Array) -> Any:
    if not config.ema_warmup:
        return decay
    t = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + t) / (10 + t))


def _microbatches(rows: Array, count: int) -> Array:
    """Reshapes [b, …] to [count, b/count, …] with rows of every device in each part.

    Consecutive rows are on one device: taking every count-th row keeps all devices busy
    with every microbatch and moves no data between them.
    """
    return jnp.moveaxis(rows.reshape(-1, count, *rows.shape[1:]), 1, 0)
