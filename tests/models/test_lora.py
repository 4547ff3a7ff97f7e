"""Low-rank adapters beside dense layers: the function, its merge, its dropout."""

import dataclasses
import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import Architecture, abstract_params, build
from vit_jax.models.adapters import adapters_of, merged_lora, without_adapters
from vit_jax.models.lora import (
    TARGETS,
    LoraArchitecture,
    LoraDense,
    parse_targets,
)
from vit_jax.optim.adapters import beside_adapters

ALL = {"lora_rank": 3, "lora_alpha": 6.0, "lora_targets": TARGETS}


@pytest.fixture
def dense():
    """One layer of 6 → 4 with its adapter, parameters, and input [2, 5, 6]."""

    def make(**fields):
        lora = LoraArchitecture(2, 3.0, ("query",), **fields)
        rng = np.random.default_rng(0)
        shapes = {"kernel": (6, 4), "bias": (4,), "lora_a": (6, 2), "lora_b": (2, 4)}
        params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        params = {name: jnp.float32(x) for name, x in params.items()}
        return lora, params, jnp.float32(rng.normal(size=(2, 5, 6)))

    return make


@pytest.mark.parametrize("stabilized", [False, True])
def test_a_layer_equals_its_formula(dense, stabilized):
    lora, p, x = dense(rank_stabilized=stabilized)
    scale = 3 / (np.sqrt(2) if stabilized else 2)
    kernel, bias, a, b = (np.asarray(p[name]) for name in p)
    expected = np.asarray(x) @ (kernel + scale * a @ b) + bias
    found = LoraDense(4, lora).apply({"params": p}, x)
    np.testing.assert_allclose(found, expected, atol=3e-6)
    half = LoraDense(4, lora, dtype=jnp.bfloat16).apply({"params": p}, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, expected, atol=0.15)


def test_initial_values_are_those_of_peft(dense):
    lora, _, x = dense()
    lora = dataclasses.replace(lora, rank=200)
    p = LoraDense(4, lora).init(jax.random.key(0), x)["params"]
    assert not np.any(p["lora_b"])
    assert np.abs(p["lora_a"]).max() <= 1 / np.sqrt(6)
    # Uniform between ±1/√6: of deviation 1/√18.
    np.testing.assert_allclose(np.std(p["lora_a"]), 1 / np.sqrt(18), rtol=0.03)
    without = LoraDense(4, dataclasses.replace(lora, rank=1))
    kernel = without.init(jax.random.key(0), x)["params"]["kernel"]
    np.testing.assert_array_equal(kernel, p["kernel"])


def test_dropout_is_of_the_adapter_alone(dense):
    lora, p, x = dense()
    layer = LoraDense(4, lora, lora_dropout=0.5)

    def run(key):
        return layer.apply({"params": p}, x, rngs={"lora": key})

    drawn = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 400))
    whole = layer.apply({"params": p}, x)
    np.testing.assert_array_equal(whole, LoraDense(4, lora).apply({"params": p}, x))
    base = np.asarray(x) @ np.asarray(p["kernel"]) + np.asarray(p["bias"])
    mean = np.mean(drawn, axis=0) - base
    np.testing.assert_allclose(mean, whole - base, atol=0.6)
    assert not np.allclose(drawn[0], drawn[1])
    silent = p | {"lora_b": np.zeros_like(p["lora_b"])}
    rngs = {"lora": jax.random.key(0)}
    found = layer.apply({"params": silent}, x, rngs=rngs)
    np.testing.assert_allclose(found, base, atol=1e-6)


def test_a_new_model_is_its_base_and_merging_changes_nothing(
    tiny, random_images, random_params
):
    adapted = tiny(pooling="map", class_token=False, class_token_position=False, **ALL)
    base, images = without_adapters(adapted), random_images(adapted)
    trained = random_params(adapted)
    blocks = {n: x for n, x in trained.items() if n.startswith("blocks")}
    assert {n for b in blocks.values() for n in b["attention"]["out"]} == {
        *("kernel", "bias", "lora_a", "lora_b")
    }
    # A MAP head is trained whole.
    assert jax.tree.structure(abstract_params(base)["map_head"]) == (
        jax.tree.structure(trained["map_head"])
    )
    model, plain = build(adapted), build(base)
    run = jax.jit(lambda p: model.apply({"params": p}, images))
    run_plain = jax.jit(lambda p: plain.apply({"params": p}, images))
    new = jax.tree.map_with_path(
        lambda path, x: x * (path[-1].key != "lora_b"), trained
    )
    without, _ = merged_lora(new, adapted)
    np.testing.assert_array_equal(run(new), run_plain(without))
    merged, found = merged_lora(trained, adapted)
    assert found == base
    expected = run(trained)
    np.testing.assert_allclose(run_plain(merged), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected - run(new)).max() > 0.1


def test_a_merged_kernel(tiny, random_params):
    adapted = tiny(
        lora_rank=2, lora_alpha=3.0, lora_targets=("fc2",), lora_rank_stabilized=True
    )
    params = random_params(adapted)
    layer = {n: np.float64(x) for n, x in params["blocks_01"]["mlp"]["fc2"].items()}
    merged, _ = merged_lora(params, adapted)
    found = merged["blocks_01"]["mlp"]["fc2"]
    expected = layer["kernel"] + 3 / np.sqrt(2) * layer["lora_a"] @ layer["lora_b"]
    np.testing.assert_array_equal(found["kernel"], expected.astype(np.float32))
    assert found.keys() == {"kernel", "bias"}
    assert "lora_a" in params["blocks_01"]["mlp"]["fc2"]


def test_scan_and_remat_equal_the_loop_and_draw_for_each_block(
    tiny, random_images, random_params
):
    adapted = tiny(**ALL)
    params, images = random_params(adapted), random_images(adapted)

    def gradients(**how):
        model = build(adapted, lora_dropout=0.3, **how)

        def loss(params, key):
            rngs = {"dropout": key}
            logits = model.apply({"params": params}, images, train=True, rngs=rngs)
            return jnp.sum(jnp.square(logits))

        return jax.jit(jax.value_and_grad(loss))

    key, loop = jax.random.key(3), gradients()
    expected = loop(params, key)
    found = gradients(scan=True, remat="full")(params, key)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)
    assert abs(loop(params, jax.random.key(4))[0] - expected[0]) > 1e-3


def test_layers_drop_different_elements(dense):
    lora, p, x = dense()

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = [LoraDense(4, lora, 0.5, name=name) for name in ("query", "key")]
            return [layer(x) for layer in layers]

    params = {"params": {"query": p, "key": p}}
    query, key = Two().apply(params, x, rngs={"lora": jax.random.key(0)})
    assert not np.allclose(query, key)


def test_dropout_of_adapters_leaves_other_draws_alone(
    tiny, random_images, random_params
):
    """Adapters without effect: a model that drops everywhere equals its base."""
    adapted = tiny(**ALL)
    params, images = random_params(adapted), random_images(adapted)
    params = jax.tree.map_with_path(
        lambda path, x: x * (path[-1].key != "lora_b"), params
    )
    plain, base = merged_lora(params, adapted)

    def run(architecture, params, **how):
        model = build(architecture, dropout_rate=0.3, stochastic_depth=0.2, **how)
        rngs = {"dropout": jax.random.key(3)}
        apply = partial(model.apply, train=True, rngs=rngs)
        return jax.jit(apply)({"params": params}, images)

    np.testing.assert_allclose(
        run(adapted, params, lora_dropout=0.5), run(base, plain), atol=1e-6
    )


def test_fields_are_written_only_where_there_are_adapters(tiny):
    assert not any(name.startswith("lora") for name in tiny().to_dict())
    adapted = tiny(**ALL)
    assert adapters_of(adapted) == ("lora",)
    assert not adapters_of(tiny())
    text = json.dumps(adapted.to_dict())
    assert Architecture.from_dict(json.loads(text)) == adapted
    assert "lora_rank_stabilized" not in json.loads(text)
    assert without_adapters(adapted) == tiny()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_alpha": 1.0}, "lora_alpha needs lora_rank"),
        ({"lora_rank": 1, "lora_targets": ("fc1",)}, "lora_alpha is 0"),
        ({"lora_rank": 1, "lora_alpha": 1.0}, "lora_rank needs lora_targets"),
        (ALL | {"lora_targets": ("key", "query")}, "query, key.*in this order"),
        (ALL | {"lora_alpha": -1.0}, "lora_alpha is -1.0, expected a finite"),
        (
            ALL | {"lora_rank": 17},
            "lora_rank 17 exceeds the smaller side of the matrix of query, which is "
            "16×16: use at most 16",
        ),
    ],
)
def test_impossible_adapters(tiny, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


def test_a_rank_is_compared_with_the_matrices_that_have_adapters(tiny):
    fields = {"lora_rank": 24, "lora_alpha": 1.0, "lora_targets": ("fc1",)}
    assert tiny(width=32, mlp_dim=24, **fields).lora_rank == 24


def test_counts_are_the_published_ones():
    """The image classification notebook of PEFT: ViT-B/16, rank 16, 101 classes."""
    architecture = Architecture.from_variant(
        "B/16",
        image_size=(224, 224),
        num_classes=101,
        lora_rank=16,
        lora_alpha=16.0,
        lora_targets=("query", "value"),
    )
    params = abstract_params(architecture)
    rests = beside_adapters(architecture, params)
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.size
        for path, x in jax.tree.leaves_with_path(params)
    }
    trained = sum(size for path, size in sizes.items() if not rests(path))
    assert (trained, sum(sizes.values())) == (667_493, 86_466_149)


def test_names_of_layers():
    assert parse_targets("value, query") == ("query", "value")
    assert parse_targets("mlp,query") == ("query", "fc1", "fc2")
    assert parse_targets("attention") == ("query", "key", "value", "out")
    assert parse_targets("all") == TARGETS
    with pytest.raises(ValueError, match=r"no layer 'querry': .* mean 'query'"):
        parse_targets("querry,value")
    with pytest.raises(ValueError, match="no layer is named: choose from query, key"):
        parse_targets(" , ")
