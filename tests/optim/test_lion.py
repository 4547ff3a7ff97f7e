"""Lion, compared with its published algorithm (arXiv:2302.06675) and with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.config import default_config
from vit_jax.optim.chain import make_optimizer

DECAY, RATE, STEPS = 0.3, 0.01, 30


def trajectory(**options):
    """Returns the parameters after each step, and the gradients."""
    config = default_config()
    config.total_steps, config.optimizer = STEPS, "lion"
    config.weight_decay, config.grad_clip_norm = DECAY, 0.0
    with config.unlocked():
        config.optimizer_options = options
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)).astype(np.float32)}
    grads = rng.normal(size=(STEPS, 4, 3)).astype(np.float32)
    optimizer = make_optimizer(config, params)
    state, update, found = optimizer.init(params), jax.jit(optimizer.update), [params]
    for grad in grads:
        directions, state = update({"kernel": grad}, state, found[-1])
        found.append(optax.tree.add_scale(found[-1], -RATE, directions))
    return [np.asarray(params["kernel"]) for params in found], grads


def reference(w, grads, b1, b2):
    """Yields the parameters by the paper's Algorithm 2 (its program, in float64)."""
    m = np.zeros_like(w)
    for g in grads.astype(np.float64):
        w = w - RATE * (np.sign(b1 * m + (1 - b1) * g) + DECAY * w)
        m = b2 * m + (1 - b2) * g
        yield w


def test_thirty_updates_with_lions_own_defaults():
    found, grads = trajectory()
    for ours, theirs in zip(
        found[1:], reference(found[0], grads, 0.9, 0.99), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    lion = optax.lion(RATE, weight_decay=DECAY)
    w = jnp.asarray(found[0])
    state = lion.init(w)
    for grad in grads:
        updates, state = lion.update(grad, state, w)
        w = w + updates
    np.testing.assert_allclose(found[-1], w, rtol=0, atol=1e-6)


def test_other_decays():
    found, grads = trajectory(b1=0.95, b2=0.8)
    [*_, theirs] = reference(found[0], grads, 0.95, 0.8)
    np.testing.assert_allclose(found[-1], theirs, rtol=0, atol=1e-6)
