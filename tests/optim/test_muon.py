"""Muon, compared with its published definition in NumPy."""

import re

import jax
import numpy as np
import optax
import pytest

from vit_jax import sharding
from vit_jax.config import default_config
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.muon import orthogonalised

STEPS, DECAY = 30, 0.1
# Path → shape; Muon's own first.
SHAPES = {
    "blocks_00/mlp/fc1/kernel": (4, 10),
    "blocks_00/mlp/fc2/kernel": (10, 4),
    "decoder/blocks_01/attention/query/kernel": (4, 4),
    "blocks_00/attention/query/lora_a": (4, 2),
    "blocks_00/mlp/fc1/bias": (10,),
    "head/kernel": (4, 3),
    "patch_embed/kernel": (2, 2, 3, 4),
    "pos_embed": (1, 2, 2, 4),
}
OWN = [*SHAPES][:3]


def recipe(options=(), **values):
    config = default_config()
    config.total_steps, config.optimizer = STEPS, "muon"
    config.weight_decay, config.grad_clip_norm = DECAY, 0.0
    with config.unlocked():
        config.optimizer_options = dict(options)
    config.update(values)
    return config


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def at(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)


def newton_schulz(x, steps=5):
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([[1, 0], [0, 2]], [[1.114164, 0], [0, 0.688763]]),
        ([[1, 2], [3, 4]], [[-0.680661, 0.825540], [0.741295, 0.259440]]),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
    ],
)
def test_published_values_of_the_iteration(x, expected):
    found = orthogonalised(np.float32(x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


class Own:
    """The published update of a matrix: m ← β·m + (1 − β)·g, Nesterov's form of it."""

    def __init__(self, options, beta=0.95):
        self.m, self.beta = 0.0, options.get("momentum", beta)
        self.nesterov, self.steps = (
            options.get("nesterov", True),
            options.get("steps", 5),
        )
        self.original = options.get("scale") == "original"

    def __call__(self, g, step):
        self.m = self.beta * self.m + (1 - self.beta) * g
        u = self.beta * self.m + (1 - self.beta) * g if self.nesterov else self.m
        rows, columns = g.shape
        scale = 0.2 * np.sqrt(max(rows, columns))
        if self.original:
            scale = np.sqrt(max(1, columns / rows))
        return scale * newton_schulz(u, self.steps)


class Adam:
    """Adam's direction with the config's b1, b2 and eps."""

    def __init__(self, factor):
        self.m, self.v, self.factor = 0.0, 0.0, factor

    def __call__(self, g, step):
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        m, v = self.m / (1 - 0.9**step), self.v / (1 - 0.999**step)
        return m / (np.sqrt(v) + 1e-8)


CASES = {
    "defaults": {},
    "other options": {
        "momentum": 0.8,
        "nesterov": False,
        "steps": 3,
        "scale": "original",
        "adamw_lr": 0.5,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_thirty_updates(case):
    options, rng = CASES[case], np.random.default_rng(0)
    expected = {path: rng.normal(size=shape) for path, shape in SHAPES.items()}
    factor = options.get("adamw_lr", 1.0)
    rules = {p: Own(options) if p in OWN else Adam(factor) for p in SHAPES}
    params = jax.tree.map(np.float32, nested(expected))
    optimizer = make_optimizer(recipe(options), params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(1, STEPS + 1):
        rate = 0.02 * step / STEPS
        grads = {path: rng.normal(size=shape) for path, shape in SHAPES.items()}
        for path, w in expected.items():
            direction = rules[path](grads[path], step)
            decay = DECAY * path.endswith("kernel")
            lr = rate * (1 if path in OWN else factor)
            expected[path] = w - lr * (direction + decay * w)
        grads = jax.tree.map(np.float32, nested(grads))
        directions, state = update(grads, state, params)
        params = optax.tree.add_scale(params, -rate, directions)
        if step in (1, STEPS):
            for path, w in expected.items():
                np.testing.assert_allclose(at(params, path), w, rtol=0, atol=1e-4)


def test_the_state_has_one_moment_of_its_matrices_and_two_of_the_others():
    params = nested(
        {path: np.zeros(shape, np.float32) for path, shape in SHAPES.items()}
    )
    state = make_optimizer(recipe(momentum_dtype="bfloat16"), params).init(params)
    sizes = {}
    for x in jax.tree.leaves(state):
        sizes[str(x.dtype)] = sizes.get(str(x.dtype), 0) + x.size
    every = sum(x.size for x in jax.tree.leaves(params))
    own = sum(at(params, path).size for path in OWN)
    assert sizes == {"bfloat16": every, "float32": every - own, "int32": 1}


def test_eight_devices_gather_each_matrix_once_and_give_the_update_of_one():
    params = nested(
        {
            "blocks_00/attention/query/kernel": (8, 8),
            "blocks_00/mlp/fc1/kernel": (8, 16),
            "blocks_00/mlp/fc2/kernel": (16, 8),
            "head/kernel": (8, 4),
        }
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        params,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    found = {}
    for sizes in ((1, 1, 1), (2, 2, 2)):
        mesh = sharding.make_mesh(*sizes)
        optimizer = make_optimizer(recipe(), params, mesh=mesh)
        where = sharding.shardings((params, optimizer.init(params)), mesh)
        update = jax.jit(
            lambda p, s, o=optimizer: o.update(jax.tree.map(jax.numpy.cos, p), s, p),
            out_shardings=where,
        )
        arguments = jax.device_put((params, optimizer.init(params)), where)
        program = update.lower(*arguments).compile()
        directions, _ = program(*arguments)
        found[sizes] = jax.device_get(directions), program.as_text()
    (one, plain), (eight, divided) = found.values()
    # The rate is 1e-3 of a direction.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), eight, one)
    assert not re.findall(r" (all-\w+|collective-permute|reduce-scatter)", plain)
    kinds = re.findall(r" (all-[a-z]+|collective-permute|reduce-scatter)\S*\(", divided)
    # One over each axis that divides it; none during the iteration.
    assert kinds == ["all-gather"] * 6
