"""The optimiser chain, which turns gradients into directions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from vit_jax.config import Config
from vit_jax.errors import Problems
from vit_jax.optim.groups import Groups, Limit, make_groups
from vit_jax.optim.guard import guarded, is_guarded
from vit_jax.optim.options import options_of, problems_of_rules
from vit_jax.optim.resting import resting
from vit_jax.optim.rule import Part, RuleInputs
from vit_jax.optim.rules import OPTIMIZERS
from vit_jax.optim.schedules import make_decay_factor
from vit_jax.optim.units import clip_adaptively, clip_by_unit_norm
from vit_jax.trees import path_name

MOMENTUM_DTYPES = ("float32", "bfloat16")
DECAY_FORMS = ("scaled", "independent")


def make_optimizer(
    config: Config,
    params: Any,
    groups: Groups | None = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    """Makes the optimiser: clipping of gradients, an optimiser's rule, weight decay.

    The updates are directions: the step multiplies them by −(learning rate), so the
    decay is decoupled and scaled by the learning rate, as in optax.adamw; or, if
    `weight_decay_form` is "independent", by the schedule relative to its peak. Bad
    updates are skipped if the config asks for it; see `guarded`. The optimiser takes
    only the parameters that are trained, not the frozen ones. Its `update` takes
    `step`, the number of finished updates, if weight decay has a schedule or a
    parameter rests at first; and `rate`, the learning rate, if the optimiser averages
    the parameters.

    Args:
      config: a resolved config.
      params: all parameters or their shapes.
      groups: how each parameter is trained; by default, as the config says.
      mesh: the devices that the parameters are sharded over; by default they are whole.

    Raises:
      UserError: see `make_groups` and `problems_of_rules`.
    """
    groups = groups or make_groups(config, params, OPTIMIZERS)
    used = {config.optimizer, *groups.values("rule")} - {""}
    if problems := problems_of_rules(config, OPTIMIZERS, used, groups):
        raise Problems(*problems)
    trained = groups.trained(params)
    dtype = jnp.dtype(config.momentum_dtype)
    chain = []
    # First in the chain: the norms are those of the raw gradients, before any scaling.
    # A limit for some parameters comes before the one for all, which then counts what
    # is left of them.
    for limit in groups.limits:
        chain.append(_clip_some(limit, trained))
    if config.grad_clip_adaptive:
        chain.append(clip_adaptively(config.grad_clip_adaptive))
    if config.grad_clip_norm:
        chain.append(optax.clip_by_global_norm(config.grad_clip_norm))
    if config.grad_clip_parameter_norm:
        chain.append(clip_by_unit_norm(config.grad_clip_parameter_norm))

    def made(rule: str, part: Part | None) -> optax.GradientTransformation:
        if part is None:
            return optax.identity()
        options = options_of(config, OPTIMIZERS[rule])
        return part(RuleInputs(config, options, dtype, groups.by_path, mesh))

    def by_rule(
        make: Callable[[str], optax.GradientTransformation],
    ) -> optax.GradientTransformation:
        own = make(config.optimizer)
        rules, begins = groups.values("rule") - {""}, groups.values("begin") - {0}
        if not rules and not begins:
            return own
        choices = {"": own} | {rule: make(rule) for rule in sorted(rules)}
        # A state of its own for all that begin together, with a count of its own.
        choices |= {
            _label(rule, begin): resting(choice, begin)
            for rule, choice in choices.items()
            for begin in sorted(begins)
        }
        labels = jax.tree.map(
            _label, groups.of("rule", trained), groups.of("begin", trained)
        )
        used = set(jax.tree.leaves(labels))
        return optax.partition(
            {name: choice for name, choice in choices.items() if name in used | {""}},
            labels,
        )

    chain.append(by_rule(lambda rule: made(rule, OPTIMIZERS[rule].before)))
    chain += _weight_decay(config, trained, groups)
    if any(OPTIMIZERS[rule].after for rule in used):
        chain.append(by_rule(lambda rule: made(rule, OPTIMIZERS[rule].after)))
    if groups.values("begin") - {0}:
        chain.append(_zeros_before(groups.of("begin", trained)))
    optimizer = optax.chain(*chain)
    return guarded(optimizer, config) if is_guarded(config) else optimizer


def _clip_some(limit: Limit, trained: Any) -> optax.GradientTransformation:
    """Makes the clipping of the gradients of some parameters by their common norm."""
    mask = jax.tree.map_with_path(
        lambda path, _: path_name(path) in limit.paths, trained
    )
    return optax.masked(optax.clip_by_global_norm(limit.max_norm), mask)


def _label(rule: str, begin: int) -> str:
    """Names a part of the optimiser: its rule, and the step at which it begins."""
    return f"{rule}@{begin}" if begin else rule


def _zeros_before(begins: Any) -> optax.GradientTransformation:
    """Makes a transformation to zeros, before the step in a tree like the updates."""

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del params
        return jax.tree.map(
            lambda u, begin: jnp.where(extra["step"] >= begin, u, 0) if begin else u,
            updates,
            begins,
        ), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _weight_decay(
    config: Config, trained: Any, groups: Groups
) -> list[optax.GradientTransformation]:
    """Makes a transformation for each value of weight decay other than 0."""
    factor = make_decay_factor(config)
    decays = jax.tree.map(
        lambda decay, lr: _added_decay(config, decay, lr),
        groups.of("decay", trained),
        groups.of("lr", trained),
    )
    made = []
    for decay in sorted({*jax.tree.leaves(decays)} - {0.0}):
        mask = jax.tree.map(lambda x, decay=decay: x == decay, decays)
        if factor is None:
            made.append(optax.add_decayed_weights(decay, mask))
        else:
            made.append(_scheduled_decay(decay, factor, mask))
    return made


def _added_decay(config: Config, decay: float, lr: float) -> float:
    """Returns how much of a parameter is added to its direction.

    The step multiplies the direction by the learning rate and by the factor `lr` of its
    group. Independent decay, big_vision's, knows only the schedule: so both are divided
    out. With a factor of 0 the parameter does not change at all.
    """
    if config.weight_decay_form == "scaled" or not lr:
        return decay
    return decay / (config.learning_rate * lr)


def _scheduled_decay(
    decay: float, factor: Callable[[Any], Array], mask: Any
) -> optax.GradientTransformation:
    """Makes a transformation that adds decay × factor(step) × parameters."""

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        now = decay * factor(extra["step"])
        return jax.tree.map(
            lambda u, p, decays: u + now * p if decays else u, updates, params, mask
        ), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
