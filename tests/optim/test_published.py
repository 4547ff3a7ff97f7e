"""Thirty updates of LARS, LAMB and DINO's clipping, as their authors define them.

The references are written in NumPy from the published definitions (MAE's util/lars.py;
apex's FusedLAMB with the defaults of DeiT III; DINO's clip_gradients). They hold query,
key and value as one array, as the original models do.
"""

import jax
import numpy as np
import optax
import pytest

from vit_jax.config import default_config
from vit_jax.optim.chain import make_optimizer

STEPS, WIDTH, DECAY = 30, 6, 0.05
QKV = ("query", "key", "value")


class Lars:
    """w ← w − lr·μ; μ ← 0.9·μ + q·(g + decay·w), q = 0.001·‖w‖/‖g + decay·w‖."""

    def __init__(self, w):
        self.momentum = np.zeros_like(w)

    def __call__(self, w, g, rate, step):
        if w.ndim > 1:
            g = g + DECAY * w
            norms = np.linalg.norm(w), np.linalg.norm(g)
            g = g * (0.001 * norms[0] / norms[1] if min(norms) > 0 else 1)
        self.momentum = 0.9 * self.momentum + g
        return w - rate * self.momentum


class Lamb:
    """Adam's direction plus decay·w, times ‖w‖ over its norm where w decays."""

    def __init__(self, w):
        self.m, self.v = np.zeros_like(w), np.zeros_like(w)

    def __call__(self, w, g, rate, step):
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m, v = self.m / (1 - 0.9**step), self.v / (1 - 0.999**step)
        update = m / (np.sqrt(v) + 1e-8)
        if w.ndim > 1:
            update = update + DECAY * w
            update *= np.linalg.norm(w) / np.linalg.norm(update)
        return w - rate * update


def joined(tree):
    """Returns the arrays of the published model: query, key and value are one."""
    attention = tree["blocks_00"]["attention"]
    return {
        "qkv/kernel": np.concatenate([attention[n]["kernel"] for n in QKV], axis=1),
        "qkv/bias": np.concatenate([attention[n]["bias"] for n in QKV]),
        "head/kernel": tree["head"]["kernel"],
    }


def clipped_together(grads):
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    return {name: g / max(1, norm / 1.0) for name, g in grads.items()}


def clipped_one_by_one(grads):
    return {
        name: g * min(1, 3 / (np.linalg.norm(g) + 1e-6)) for name, g in grads.items()
    }


CASES = {
    "lars": ({"grad_clip_norm": 0.0}, Lars, dict),
    "lamb": ({"grad_clip_norm": 1.0}, Lamb, clipped_together),
    "lamb, clipped like DINO": (
        {"grad_clip_norm": 0.0, "grad_clip_parameter_norm": 3.0},
        Lamb,
        clipped_one_by_one,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_thirty_updates(case):
    values, reference, clip = CASES[case]
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape)

    def tree():
        attention = {
            name: {"kernel": draw(WIDTH, WIDTH), "bias": draw(WIDTH)} for name in QKV
        }
        head = {"kernel": draw(WIDTH, 4)}
        return {"blocks_00": {"attention": attention}, "head": head}

    config = default_config()
    config.update(
        {
            "optimizer": case.partition(",")[0],
            "total_steps": STEPS,
            "weight_decay": DECAY,
            **values,
        }
    )
    params = tree()
    expected = joined(params)
    rules = {name: reference(w) for name, w in expected.items()}
    params = jax.tree.map(np.float32, params)
    optimizer = make_optimizer(config, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(1, STEPS + 1):
        rate = 0.1 * step / STEPS  # momentum must not know it
        grads = tree()
        theirs = clip(joined(grads))
        for name, g in theirs.items():
            expected[name] = rules[name](expected[name], g, rate, step)
        directions, state = update(jax.tree.map(np.float32, grads), state, params)
        params = optax.tree.add_scale(params, -rate, directions)
    for name, found in joined(params).items():
        np.testing.assert_allclose(found, expected[name], atol=1e-5)
