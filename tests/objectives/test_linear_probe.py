"""Linear probing: PyTorch's layers, the folded head, devices, and what is refused."""

import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import vit_jax
from vit_jax import sharding
from vit_jax.checkpoints.reading import load_params
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError
from vit_jax.objectives.linear_probe import LinearProbe
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "probe.npz"
PROBE = {
    "objective": "linear_probe",
    "schedule": "constant",
    "grad_clip_norm": 0.0,
    "model.depth": 1,
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def config_of(tiny_config):
    def make(values=(), **options):
        config = tiny_config(**{**PROBE, **dict(values)})
        config.objective_options = ConfigDict(options)
        return config

    return make


def batch_of(setup, seed=0):
    rng = np.random.default_rng(seed)
    rows = setup.abstract_batch()["image"].shape
    mask = np.ones(rows[0], np.float32)
    mask[1] = 0
    return {
        "image": rng.integers(0, 256, rows, dtype=np.uint8),
        "label": rng.integers(0, 10, rows[0]).astype(np.int32),
        "mask": mask,
        "bad": np.zeros(rows[0], np.int32),
    }


def begun(setup, seed=7):
    """Returns a state of random parameters."""
    abstract = setup.abstract_state()
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
        abstract.params,
    )
    where = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.device_put(setup.new_state(params), where)


@pytest.mark.parametrize(("kind", "rate"), [("sgd", 0.5), ("lars", 3.0)])
def test_thirty_steps_are_those_of_pytorch(kind, rate, config_of, golden, monkeypatch):
    # The features are given: the "images" are their numbers.
    monkeypatch.setattr(
        LinearProbe, "features", lambda self, params, images: images[:, 0, :, 0]
    )
    values = {"mesh.data": 1, "optimizer": kind, "learning_rate": rate}
    setup = set_up(config_of(values))
    state = begun(setup)
    state.params["head"] = jax.device_put(
        {name: golden[name] for name in ("kernel", "bias")}
    )
    step, losses = setup.train_step(), []
    for x, labels, mask in zip(
        golden["features"], golden["labels"], golden["mask"], strict=True
    ):
        batch = {
            "image": x[:, None, :, None],
            "label": labels,
            "mask": mask,
            "bad": np.zeros(len(x), np.int32),
        }
        state, metrics = step(state, sharding.place(batch, setup.mesh))
        losses.append(float(metrics["loss"]))
    expected = {
        name.removeprefix(f"{kind}/"): value
        for name, value in golden.items()
        if name.startswith(f"{kind}/")
    }
    np.testing.assert_allclose(losses, expected["losses"], rtol=2e-5)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            state.params["head"][name], expected[name], rtol=0, atol=2e-5
        )
    for name in ("mean", "variance"):
        np.testing.assert_allclose(state.objective[name], expected[name], rtol=1e-5)
    head = jax.device_get(state.objective["model"]["head"])
    logits = golden["seen"] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)


def test_only_the_head_is_trained(config_of):
    setup = set_up(config_of({"weight_decay": 0.1, "mesh.data": 1}))
    state = begun(setup)
    before = jax.device_get(state.params)
    # Moments of the head's two arrays, and a count.
    shapes = sorted(x.shape for x in jax.tree.leaves(state.opt_state))
    assert shapes == [(), (10,), (10,), (16, 10), (16, 10)]
    batch = sharding.place(batch_of(setup), setup.mesh)
    state, _ = setup.train_step()(state, batch)
    after = jax.device_get(state.params)
    for name in before:
        same = jax.tree.map(np.array_equal, before[name], after[name])
        assert all(jax.tree.leaves(same)) == (name != "head"), name


def test_what_is_evaluated_and_loaded_is_an_ordinary_model(config_of, tmp_path):
    run = str(tmp_path / "run")
    config = config_of(
        {
            "train_split": "train[:64]",
            "eval_split": "test[:64]",
            "total_steps": 2,
            "eval_batch_size": 64,
            "model.head_std": 0.01,
            "optimizer": "lars",
            "learning_rate": 10.0,
        }
    )
    numbers = train_and_evaluate(config, run)
    model = vit_jax.load(run)
    trained, served = load_params(run)["head"], model.params["head"]
    assert served.keys() == trained.keys()
    assert np.abs(served["kernel"] - trained["kernel"]).max() > 1e-3
    source = open_dataset("digits").split("test[:64]")
    logits = model(model.prepare([source[i].image for i in range(64)]))
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(64), source.labels()]
    assert numbers["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_devices_change_neither_the_gradients_nor_thirty_steps(config_of):
    ways = ({"mesh.data": 1}, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    plain = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1}
    first, last, losses = [], [], []
    for way in ways:
        setup = set_up(config_of({**plain, **way}))
        state = begun(setup)
        step = setup.lower().compile()
        for number in range(30):
            batch = sharding.place(batch_of(setup, number % 5), setup.mesh)
            state, metrics = step(state, batch)
            if number == 0:
                first.append(jax.device_get((state.params["head"], state.objective)))
                losses.append(float(metrics["loss"]))
        last.append(jax.device_get((state.params["head"], state.objective)))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    for found, tolerance in ((first, 1e-6), (last, 1e-5)):
        for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
            scale = max(1.0, np.abs(one).max())
            np.testing.assert_allclose(eight, one, rtol=0, atol=tolerance * scale)


def test_microbatches_add_up_to_the_moments_of_the_batch(config_of):
    # Each microbatch is normalised by its own moments, so only the averages agree.
    found = []
    for accum_steps in (1, 4):
        values = {"mesh.data": 1, "accum_steps": accum_steps, "learning_rate": 0.0}
        setup = set_up(config_of(values, momentum=0.5))
        batch = sharding.place(batch_of(setup), setup.mesh)
        state = begun(setup)
        for _ in range(2):
            state, _ = setup.train_step()(state, batch)
        found.append(jax.device_get(state.objective))
    for one, four in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-6)


def test_a_batch_that_counts_nothing_keeps_the_averages(config_of):
    setup = set_up(config_of({"mesh.data": 1}))
    batch = batch_of(setup)
    batch["mask"][:] = 0
    state = begun(setup)
    state, metrics = setup.train_step()(state, sharding.place(batch, setup.mesh))
    assert not np.any(state.objective["mean"])
    assert np.all(np.asarray(state.objective["variance"]) == 1)
    assert metrics["loss"] == 0


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {"epsilon": 0.0}, "epsilon=0.0: give a number above 0"),
        ({}, {"momentum": 1.5}, "momentum=1.5: give a number above 0 and at most 1"),
        ({}, {"decay": 0.9}, "decay"),
        ({"ema_decay": 0.9}, {}, "ema_decay=0.9 has no effect: linear_probe trains"),
        ({"layer_decay": 0.7}, {}, "layer_decay=0.7 .* leave it at 1.0"),
        ({"model.dropout_rate": 0.1}, {}, "model.dropout_rate=0.1 has no effect"),
        (
            {"batch_size": 8, "accum_steps": 8, "mesh.data": 1},
            {},
            "batch_size=8 with accum_steps=8 leaves a single image",
        ),
        ({"groups": "norm/.*: lr=2"}, {}, "'norm/.*' matches no .* objective freezes"),
    ],
)
def test_what_cannot_work_is_refused(config_of, values, options, message):
    with pytest.raises(UserError, match=message):
        set_up(config_of(values, **options))
