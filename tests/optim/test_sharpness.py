"""Sharpness-aware minimisation: the published formulas, and what a step makes of it."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.objectives.choosing import OBJECTIVES
from vit_jax.optim.groups import Group, Groups
from vit_jax.optim.schedules import make_schedule
from vit_jax.optim.sharpness import make_gradient_wrap, make_rho_schedule
from vit_jax.plan.plans import make_plan
from vit_jax.train.setup import set_up

TOGETHER = Groups({"w": Group(), "b": Group()})


def config_of(**sam):
    config = default_config()
    config.total_steps, config.schedule = 30, "linear"
    config.warmup_steps, config.learning_rate = 5, 0.2
    config.end_learning_rate = 0.02
    config.sam.update(sam)
    return config


def wrapped(config, gradient, groups=TOGETHER):
    return lambda params, step: make_gradient_wrap(config, groups)(gradient, step)(
        params
    )


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.0, (1.0164399, 6.2959182)), (0.6, (0.9981168, 6.2988763))],
)
def test_one_gradient_of_a_paraboloid(alpha, expected):
    # The loss ½ (w₁² + 3 w₂²) at (1, 2), by hand.
    def gradient(params):
        return {"w": jnp.array([1.0, 3.0]) * params["w"]}, jnp.sum(params["w"])

    found, result = wrapped(config_of(rho=0.1, alpha=alpha), gradient)(
        {"w": jnp.array([1.0, 2.0])}, 0
    )
    np.testing.assert_allclose(found["w"], expected, rtol=2e-7)
    assert result == 3.0  # of the parameters themselves


VARIANTS = [
    {"rho": 0.5},
    {"rho": 0.5, "adaptive": "asam"},
    {"rho": 0.6, "rho_min": 0.1, "alpha": 0.6},
    {"rho": 0.6, "rho_min": 0.1, "alpha": 0.4, "minimize_fp": False},
    {"rho": 0.6, "alpha": 0.6, "adaptive": "gsam"},
]


def in_numpy(sam, x, y, w, rates):
    """Trains logistic regression in float64, on one vector of weights and a bias."""
    rho, low = sam["rho"], sam.get("rho_min", sam["rho"])
    alpha, losses = sam.get("alpha", 0.0), []

    def loss_and_gradient(w):
        z = x @ w[:-1] + w[-1]
        error = 1 / (1 + np.exp(-z)) - y
        loss = np.mean(np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - y * z)
        return loss, np.append(x.T @ error, error.sum()) / len(y)

    for rate in rates:
        loss, g = loss_and_gradient(w)
        losses.append(loss)
        radius = low + (rho - low) * (rate - 0.02) / (0.2 - 0.02)
        perturbation = {
            "": radius * g / np.linalg.norm(g),
            "asam": radius * w**2 * g / np.linalg.norm(w * g),
            "gsam": radius * np.abs(w) * g / np.linalg.norm(g),
        }[sam.get("adaptive", "")]
        robust = loss_and_gradient(w + perturbation)[1]
        if sam.get("minimize_fp", True):
            g = robust - alpha * (g - (g @ robust) / (robust @ robust) * robust)
        else:
            g = g + alpha * (robust - (g @ robust) / (g @ g) * g)
        w = w - rate * g
    return losses, w


@pytest.mark.parametrize("sam", VARIANTS, ids=lambda sam: "-".join(sam))
def test_thirty_steps_of_the_published_formulas(sam):
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((40, 6)), rng.standard_normal(7)
    y = (x[:, 0] + 0.3 * rng.standard_normal(40) > 0).astype(float)
    config = config_of(**sam)
    schedule = make_schedule(config)
    rates = np.asarray(schedule(np.arange(30)), np.float64)
    losses, expected = in_numpy(sam, x, y, w, rates)

    def loss(params):
        z = jnp.asarray(x, jnp.float32) @ params["w"] + params["b"]
        return jnp.mean(jax.nn.softplus(z) - jnp.asarray(y, jnp.float32) * z)

    def gradient(params):
        value, found = jax.value_and_grad(loss)(params)
        return found, value

    @jax.jit
    def train(params):
        def update(params, step):
            found, value = wrapped(config, gradient)(params, step)
            rate = schedule(step)
            return jax.tree.map(lambda p, g: p - rate * g, params, found), value

        return jax.lax.scan(update, params, jnp.arange(30))

    start = {"w": jnp.float32(w[:-1]), "b": jnp.float32(w[-1])}
    params, found = train(start)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    np.testing.assert_allclose(params["w"], expected[:-1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(params["b"], expected[-1], rtol=0, atol=1e-5)


def test_a_gradient_of_zero_stays_zero():
    def gradient(params):
        return jax.tree.map(jnp.zeros_like, params), ()

    params = {"w": jnp.ones(3)}
    for values in VARIANTS:
        found, _ = wrapped(config_of(**values), gradient)(params, 0)
        np.testing.assert_array_equal(found["w"], np.zeros(3))


def test_the_distance_follows_the_learning_rate():
    config = config_of(rho=0.6, rho_min=0.1)
    radii = make_rho_schedule(config)(np.array([0, 5, 30]))
    # Before the warm-up the rate is 0, which is below where it ends.
    np.testing.assert_allclose(radii, [0.1 - 0.5 * 0.02 / 0.18, 0.6, 0.1], rtol=1e-5)
    config.end_learning_rate = 0.1
    assert make_rho_schedule(config)(0) == 0.0  # never negative
    config.schedule, config.cooldown_steps = "constant", 10
    radii = make_rho_schedule(config)(np.array([0, 20, 25, 30]))
    np.testing.assert_allclose(radii, [0.1, 0.6, 0.35, 0.1], rtol=1e-5)
    assert make_rho_schedule(config_of(rho=0.3))(7) == np.float32(0.3)
    equal = config_of(rho=0.6, rho_min=0.1)
    equal.end_learning_rate = equal.learning_rate
    assert make_rho_schedule(equal)(0) == np.float32(0.6)


@pytest.mark.parametrize("setting", ["start", "begin"])
def test_parameters_that_take_part_later_are_not_perturbed_before(setting):
    groups = Groups({"w": Group(), "b": Group(**{setting: 2})})
    seen = []

    def gradient(params):
        seen.append(params)
        return jax.tree.map(jnp.ones_like, params), ()

    for step in (1, 2):
        wrapped(config_of(rho=1.0), gradient, groups)(
            {"w": jnp.zeros(()), "b": jnp.zeros(())}, step
        )
    assert [float(params["b"]) for params in seen] == [
        *(0, 0),
        *(0, pytest.approx(math.sqrt(0.5))),
    ]
    assert float(seen[1]["w"]) == 1.0


# With a learning rate of 1, the parameters' difference is the gradient.
PLAIN = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "grad_clip_norm": 0.0,
    "schedule": "constant",
    "learning_rate": 1.0,
    "model.depth": 1,
    "groups": "pos_embed: frozen",
}


def some_params(setup):
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(x.dtype),
        setup.abstract_state().params,
    )


def some_values(rng, column):
    """Makes the values of one column: images, weights of examples, or labels."""
    if column.dtype == np.uint8:
        return rng.integers(0, 256, column.shape, dtype=np.uint8)
    if column.dtype == np.float32:
        return rng.choice([0.0, 0.5, 1.0], column.shape).astype(np.float32)
    return rng.integers(0, 10, column.shape, dtype=np.int32)


def updater(config):
    """Returns a setup, and a function of parameters that makes one step from them."""
    setup = set_up(config)
    step, shapes = setup.train_step(), setup.abstract_batch()
    where = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
    rng = np.random.default_rng(0)
    batch = {name: some_values(rng, x) for name, x in shapes.items()}
    rest = [sharding.place(batch, setup.mesh), setup.extra()]
    rest = rest[: len(setup.abstract_arguments()) - 1]

    def update(params, begun=None):
        """Makes a step; `begun` are the parameters that a teacher is made of."""
        state = setup.new_state(params if begun is None else begun)
        state = jax.device_put(state._replace(params=params), where)
        state, metrics = step(state, *rest)
        return jax.device_get((state.params, metrics))

    return setup, update


def test_a_step_perturbs_by_the_whole_batch_on_eight_devices(tiny_config):
    """Two plain steps with the same dropout tell what the one of GSAM has to be."""
    values = {
        **{**PLAIN, "accum_steps": 2, "model.dropout_rate": 0.2},
        **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
    }
    setup, update = updater(tiny_config(**values))
    start = some_params(setup)
    flat = lambda tree: np.concatenate([*map(np.ravel, jax.tree.leaves(tree))])  # noqa: E731
    after, metrics = update(start)
    gradient = jax.tree.map(np.subtract, start, after)
    assert not gradient["pos_embed"].any()
    clean = flat(gradient)
    scale = np.float32(0.3 / np.linalg.norm(clean))
    there = jax.tree.map(lambda w, g: w + scale * g, start, gradient)
    robust = flat(there) - flat(update(there)[0])
    rest = clean - clean @ robust / (robust @ robust) * robust

    _, update = updater(tiny_config(**values, **{"sam.rho": 0.3, "sam.alpha": 0.4}))
    after, their_metrics = update(start)
    expected = robust - 0.4 * rest
    atol = 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(flat(start) - flat(after), expected, rtol=0, atol=atol)
    np.testing.assert_array_equal(after["pos_embed"], start["pos_embed"])
    # Those of the parameters themselves, but for the norm of the gradient.
    for name in ("loss", "accuracy", "learning_rate"):
        np.testing.assert_allclose(their_metrics[name], metrics[name], rtol=1e-6)
    norm = np.linalg.norm(expected)
    np.testing.assert_allclose(their_metrics["grad_norm"], norm, rtol=1e-5)


# Keys and options of a small run of each objective; WEIGHTS is a work directory.
DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
PROJECTION = {
    "freeze_last_layer": 0,
    "out_dim": 16,
    "hidden_dim": 16,
    "bottleneck_dim": 8,
}
SMALL = {
    "classification": ({"mixing.mixup_alpha": 0.5}, {}),
    "distillation": ({}, {"teachers": "WEIGHTS", "kind": "soft"}),
    "linear_probe": ({"pretrained": "WEIGHTS", "model.head_std": 0.01}, {}),
    "masked_autoencoding": ({"model.posemb": "sincos2d"}, DECODER),
    "masked_patches": ({}, {"swap_from": "batch"}),
    "self_distillation": ({}, PROJECTION),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_perturbed(objective, tiny_config, make_workdir, tmp_path):
    """As above, from the objective's own gradients; draws belong to the step."""
    weights = str(make_workdir(tmp_path / "weights"))

    def filled(values):
        return {n: weights if x == "WEIGHTS" else x for n, x in values.items()}

    def config(**sam):
        keys, options = map(filled, SMALL[objective])
        every = {**PLAIN, "groups": "", "objective": objective, "mesh.data": 2}
        config = tiny_config(**every, **keys, **sam)
        config.objective_options = ConfigDict(options)
        return config

    flat = lambda tree: np.concatenate([*map(np.ravel, jax.tree.leaves(tree))])  # noqa: E731
    setup, update = updater(config())
    start = some_params(setup)
    after, _ = update(start)
    gradient = jax.tree.map(np.subtract, start, after)
    scale = np.float32(0.3 / np.linalg.norm(flat(gradient)))
    there = jax.tree.map(lambda w, g: w + scale * g, start, gradient)
    expected = flat(there) - flat(update(there, begun=start)[0])

    _, update = updater(config(**{"sam.rho": 0.3}))
    found = flat(start) - flat(update(start)[0])
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)
    assert np.abs(expected - flat(gradient)).max() > 1e-3 * largest


def test_keys_without_effect_are_named(tiny_config):
    values = {"sam.alpha": 0.4, "sam.adaptive": "assam", "sam.minimize_fp": False}
    with pytest.raises(UserError) as refused:
        set_up(tiny_config(**values))
    message = str(refused.value)
    why = "has no effect: sam.rho is 0, so there is no SAM; leave it at"
    assert f"sam.alpha=0.4 {why} 0.0" in message
    assert f"sam.minimize_fp=False {why} True" in message
    assert "sam.adaptive='assam': choose from \"\", asam, gsam" in message

    with pytest.raises(UserError) as refused:
        set_up(tiny_config(**{"sam.rho": 0.1, "sam.rho_min": 0.2}))
    assert "sam.rho_min=0.2 must not exceed sam.rho=0.1" in str(refused.value)
    with pytest.raises(UserError) as refused:
        set_up(tiny_config(**{"sam.rho": 0.1, "sam.minimize_fp": False}))
    assert "sam.alpha=0.0 trains with the ordinary gradient" in str(refused.value)
    with pytest.raises(UserError, match=r"sam\.rho=-1\.0: must be at least 0"):
        set_up(tiny_config(**{"sam.rho": -1.0}))


def test_both_passes_are_counted(tiny_config, monkeypatch):
    monkeypatch.setattr("vit_jax.plan.plans.measure_step", lambda *_: None)
    once, twice = (
        make_plan(
            set_up(tiny_config(**{"sam.rho": rho})), types.SimpleNamespace(name="")
        )
        for rho in (0.0, 0.1)
    )
    found = twice.training_flops, 2 * once.training_flops
    assert found[0] == found[1] == 6 * twice.flops.total
