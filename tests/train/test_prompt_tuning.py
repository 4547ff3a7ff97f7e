"""Runs that train visual prompts: thirty steps, devices, what is kept and refused."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import vit_jax
from vit_jax import sharding
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.reading import load_params
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture
from vit_jax.train.adapters_from_config import check_continued
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up
from vit_jax.train.start import read_weights
from vit_jax.trees import path_name
from vit_jax.weights.formats.known import FORMATS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "prompts.npz"
SGD = {
    "optimizer": "sgd",
    "schedule": "constant",
    "grad_clip_norm": 0.0,
    "augment.train": "resize",
    "pretrained": "weights.npz",  # a setup reads none
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def leaves(tree):
    """Returns path → array."""
    return {path_name(p): x for p, x in jax.tree.leaves_with_path(jax.device_get(tree))}


def placed(setup, params):
    where = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
    return jax.device_put(setup.new_state(params), where)


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_thirty_steps_are_those_of_pytorch(kind, golden, tiny_config):
    values = {
        "model.depth": 3,
        "model.mlp_dim": 24,
        "prompts.count": 4,
        "prompts.deep": kind == "deep",
        "momentum": 0.9,
        "learning_rate": 0.05,
        "batch_size": 6,
        "mesh.data": 1,
    }
    setup = set_up(tiny_config(**SGD, **values))

    def first(path, _):
        name = path_name(path)
        if not name.endswith("prompts"):
            return golden[f"params/{name}"]
        block = int(name[7:9]) if kind == "deep" else 0
        return golden[f"{kind}/prompts"][block][None]

    start = jax.tree.map_with_path(first, setup.param_shapes)
    state, step, losses = placed(setup, start), setup.train_step(), []
    # Momentum for the prompts and the head's two arrays, nothing for the backbone.
    count = 3 if kind == "deep" else 1
    moments = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(moments) == sorted([(1, 4, 16)] * count + [(10,), (16, 10)])
    trained = setup.groups.trained(setup.param_shapes)
    sizes = sum(x.size for x in jax.tree.leaves(trained))
    assert sizes == 4 * 16 * count + 17 * 10
    for rows in golden["rows"]:
        batch = {
            "image": golden["images"][rows],
            "label": golden["labels"][rows],
            "mask": np.ones(6, np.float32),
            "bad": np.zeros(6, np.int32),
        }
        state, metrics = step(state, sharding.place(batch, setup.mesh))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, golden[f"{kind}/loss"], rtol=1e-4)
    after, before = leaves(state.params), leaves(start)
    for name, value in after.items():
        if name.endswith("prompts"):
            block = int(name[7:9]) if kind == "deep" else 0
            expected = golden[f"{kind}/after/prompts"][block][None]
        elif name.startswith("head/"):
            expected = golden[f"{kind}/after/{name}"]
        else:
            np.testing.assert_array_equal(value, before[name], err_msg=name)
            continue
        np.testing.assert_allclose(value, expected, atol=1e-4, err_msg=name)


def test_eight_devices_give_the_gradients_of_one(tiny_config):
    # With a learning rate of 1 the parameters' difference is the gradient.
    values = SGD | {"momentum": 0.0, "learning_rate": 1.0, "prompts.count": 4}
    deep = {"prompts.deep": True, "model.scan": True, "model.remat": "full"}
    all_three = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "accum_steps": 2}
    found = []
    for way in ({"mesh.data": 1}, all_three):
        setup = set_up(tiny_config(**values, **deep, **way))
        rng = np.random.default_rng(7)
        start = jax.tree.map(
            lambda x, rng=rng: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
            setup.param_shapes,
        )
        batch = {
            "image": rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8),
            "label": rng.integers(0, 10, 16).astype(np.int32),
            "mask": np.ones(16, np.float32),
            "bad": np.zeros(16, np.int32),
        }
        state = placed(setup, start)
        step = setup.lower().compile()
        state, metrics = step(state, sharding.place(batch, setup.mesh))
        prompts = state.params["blocks_01"]["prompts"]
        parts = (1, 4, 16) if "mesh.fsdp" not in way else (1, 4, 8)
        assert prompts.sharding.shard_shape(prompts.shape) == parts
        moved = jax.tree.map(np.subtract, start, jax.device_get(state.params))
        found.append((leaves(moved), float(metrics["loss"])))
    (one, loss), (eight, other_loss) = found
    assert other_loss == pytest.approx(loss, rel=1e-6)
    largest = max(np.abs(x).max() for x in one.values())
    for name, x in one.items():
        trains = name.endswith("prompts") or name.startswith("head/")
        assert np.any(x) == trains, name
        np.testing.assert_allclose(eight[name], x, rtol=0, atol=1e-6 * largest)


def test_a_run_keeps_its_base_and_is_loaded_with_its_prompts(
    tiny_config, make_teacher, tmp_path
):
    base, run = make_teacher("base"), str(tmp_path / "run")
    values = {
        "pretrained": base,
        "reset_head": False,
        "prompts.count": 3,
        "prompts.deep": True,
        "prompts.dropout": 0.2,
        "model.depth": 1,
        "mesh.data": 2,
        "train_split": "train[:64]",
        "eval_split": "test[:64]",
        "eval_batch_size": 64,
        "total_steps": 2,
        "learning_rate": 0.1,
    }
    numbers = train_and_evaluate(tiny_config(**values), run)
    saved = leaves(load_params(run))
    assert set(saved) == {"blocks_00/prompts", "head/kernel", "head/bias"}
    assert np.abs(saved["blocks_00/prompts"]).max() > 0.01
    model, plain = vit_jax.load(run), vit_jax.load(base)
    assert (model.architecture.prompts, model.architecture.prompts_deep) == (3, True)
    first, last = leaves(plain.params), leaves(model.params)
    changed = {name for name in first if not np.array_equal(first[name], last[name])}
    assert changed == {"head/kernel", "head/bias"}
    examples = open_dataset("digits").split("test[:64]")
    images = model.prepare([examples[i].image for i in range(64)])
    losses = -np.asarray(jax.nn.log_softmax(model(images)))
    loss = losses[np.arange(64), examples.labels()].mean()
    assert numbers["loss"] == pytest.approx(loss, rel=1e-5)
    # Our own file keeps the prompts; in any other format they would be lost.
    path = tmp_path / "whole.safetensors"
    vit_jax.save(model, path)
    np.testing.assert_array_equal(vit_jax.load(path)(images), model(images))
    suffixes = {"huggingface": "", "google": ".npz", "big_vision": ".npz"}
    for name in set(FORMATS) - {"mae"}:  # which is for models with a decoder
        other = tmp_path / f"{name}{suffixes.get(name, '.safetensors')}"
        with pytest.raises(UserError, match=r"3 deep prompts, .* can: vit_jax$"):
            vit_jax.save(model, other, format=name)
    # Another run that starts from it has to ask for the same prompts.
    with pytest.raises(UserError, match="have 3 deep prompts, which cannot be merged"):
        read_weights(tiny_config(pretrained=run), None)
    assert model.attention(images[:1]).shape == (1, 1, 2, 5, 5)
    assert model.features(images[:1]).patches.shape == (1, 1, 2, 2, 16)


def description(architecture):
    """Describes weights, as far as a setup reads it."""
    plain = to_plain(default_config())
    return Description(architecture, Preprocessing((8, 8)), (), plain, 0)


TINY = {"width": 16, "depth": 2, "patch_size": (4, 4), "image_size": (8, 8)}
TINY |= {"mlp_dim": 32, "num_classes": 10}
OF_WEIGHTS = {
    "model.variant": "",
    "model.width": None,
    "model.depth": None,
    "model.mlp_dim": None,
    "model.num_heads": None,
}
PROMPTED = Architecture(**TINY, num_heads=2, prompts=5, prompts_deep=True)
ASKED = {"pretrained": "weights.npz", "prompts.count": 4}


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        (
            {"prompts.deep": True, "prompts.dropout": 0.1},
            None,
            r"prompts.deep=True, prompts.dropout=0.1 without prompts.count has no eff",
        ),
        (
            {"prompts.count": 4},
            None,
            r"prompts.count=4 without pretrained weights: .*set --config.pretrained",
        ),
        (
            {"prompts.count": -1},
            None,
            r"prompts.count=-1: must be at least 0; nearest is 0",
        ),
        (
            ASKED | {"prompts.dropout": 1.0},
            None,
            r"prompts.dropout=1.0: must be from 0.0 to 0.99; nearest is 0.99",
        ),
        (
            ASKED | OF_WEIGHTS,
            MixerArchitecture(**TINY, tokens_mlp_dim=8),
            r"prompts.count=4: only a Vision Transformer can have prompts",
        ),
        (
            ASKED | {"objective": "linear_probe"},
            Architecture(**TINY, num_heads=2),
            r"prompts has no effect: every parameter of these adapters is frozen",
        ),
        (
            ASKED | {"groups": ".*prompts: frozen"},
            Architecture(**TINY, num_heads=2),
            r"prompts has no effect: every parameter of these adapters is frozen",
        ),
    ],
    ids=[
        *("no count", "no weights", "negative", "dropout", "mixer"),
        *("objective", "groups"),
    ],
)
def test_what_cannot_work_is_refused_by_name(values, weights, message, tiny_config):
    with pytest.raises(UserError, match=message):
        set_up(tiny_config(**values), pretrained=weights and description(weights))


@pytest.mark.parametrize("objective", ["masked_autoencoding", "self_distillation"])
def test_what_an_objective_adds_is_trained_too(objective, tiny_config):
    options = {
        "masked_autoencoding": {"decoder_width": 16, "decoder_depth": 1},
        "self_distillation": {
            "out_dim": 16,
            "local_crops_size": 4,
            "freeze_last_layer": 0,
        },
    }
    values = ASKED | {"objective": objective, "prompts.deep": True}
    if objective == "masked_autoencoding":
        options[objective]["decoder_heads"] = 2
        values["model.posemb"] = "sincos2d"
    config = tiny_config(**values)
    config.objective_options = ConfigDict(options[objective])
    groups = set_up(config).groups.by_path
    added = {"masked_autoencoding": "decoder/", "self_distillation": "projection_head/"}
    assert any(path.startswith(added[objective]) for path in groups)
    for path, group in groups.items():
        beside = path.startswith(added[objective])
        assert group.frozen != (beside or path.endswith("/prompts")), path


@pytest.mark.parametrize("adapter", [ASKED, {"lora.rank": 2, "pretrained": "w.npz"}])
def test_train_only_names_what_trains_beside_adapters(adapter, tiny_config):
    """Checks that bias tuning and other sets combine with adapters and the head."""
    only = {"train_only": "adapters,head,biases"}
    groups = set_up(tiny_config(**adapter, **only)).groups.by_path
    kinds = ("prompts", "lora_a", "lora_b", "bias")
    for path, group in groups.items():
        trains = path.startswith("head/") or path.rpartition("/")[2] in kinds
        assert group.frozen != trains, path
    # What `freeze` names rests in any case.
    groups = set_up(tiny_config(**adapter, freeze="head")).groups.by_path
    for path, group in groups.items():
        assert group.frozen != (path.rpartition("/")[2] in kinds[:3]), path


def test_other_prompts_than_those_of_the_weights_are_refused(tiny_config):
    for values, has in (
        ({"prompts.count": 4, "prompts.deep": True}, "count=4 and prompts.deep=True"),
        ({"prompts.count": 5}, "count=5 and prompts.deep=False"),
        ({}, "count=0 and prompts.deep=False"),
    ):
        message = (
            rf"weights w.npz have 5 deep prompts, .* config has prompts.{has}: pass "
            r"--config.prompts.count=5 --config.prompts.deep=True to train them on"
        )
        with pytest.raises(UserError, match=message):
            check_continued(PROMPTED, tiny_config(**values), "w.npz")
    same = {"prompts.count": 5, "prompts.deep": True}
    check_continued(PROMPTED, tiny_config(**same), "w.npz")
    base = dataclasses.replace(PROMPTED, prompts=0, prompts_deep=False)
    check_continued(base, tiny_config(**same), "w.npz")


def test_prompts_of_the_weights_are_trained_on(tiny_config):
    values = OF_WEIGHTS | {
        "pretrained": "weights.npz",
        "prompts.count": 5,
        "prompts.deep": True,
    }
    setup = set_up(tiny_config(**values), pretrained=description(PROMPTED))
    assert setup.architecture == PROMPTED
    # A probe of weights that have prompts does not need to train these.
    config = tiny_config(**values, objective="linear_probe")
    assert set_up(config, pretrained=description(PROMPTED)).architecture == PROMPTED
