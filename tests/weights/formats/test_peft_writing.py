import dataclasses

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import Architecture, abstract_params
from vit_jax.weights.formats.layout import flatten, unflatten
from vit_jax.weights.formats.peft_writing import write_adapter

PLAIN = Architecture(8, 2, 12, 2, (4, 4), (8, 8), 3)
QUERY_VALUE = ("query", "value")
ALL = ("query", "key", "value", "out", "fc1", "fc2")


def adapted(targets, base=PLAIN, alpha=6.0, rank=2, **fields):
    return dataclasses.replace(
        base, lora_rank=rank, lora_alpha=alpha, lora_targets=targets, **fields
    )


def params_of(architecture):
    rng = np.random.default_rng(0)
    shapes = flatten(abstract_params(architecture))
    return {p: rng.normal(size=x.shape).astype(np.float32) for p, x in shapes.items()}


def write(architecture, names, flat=None, **how):
    flat = params_of(architecture) if flat is None else flat
    return write_adapter(architecture, unflatten(flat), names, **how)


def test_config_and_names_of_transformers_5():
    a = adapted(QUERY_VALUE)
    flat = params_of(a)
    written = write(a, "transformers5", flat, dropout=0.1)
    start = "base_model.model.vit.layers"
    assert sorted(written.tensors) == [
        "base_model.model.classifier.bias",
        "base_model.model.classifier.weight",
        *(
            f"{start}.{i}.attention.{layer}_proj.lora_{part}.weight"
            for i in range(2)
            for layer in "qv"
            for part in "AB"
        ),
    ]
    a_of_value = written.tensors[f"{start}.1.attention.v_proj.lora_A.weight"]
    b_of_value = written.tensors[f"{start}.1.attention.v_proj.lora_B.weight"]
    ours = "blocks_01/attention/value"
    np.testing.assert_array_equal(a_of_value, flat[f"{ours}/lora_a"].T)
    np.testing.assert_array_equal(b_of_value, flat[f"{ours}/lora_b"].T)
    assert written.config == {
        "peft_type": "LORA",
        "task_type": None,
        "r": 2,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["classifier"],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "revision": None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


NO_HEAD = dataclasses.replace(PLAIN, num_classes=0)
DINOV2 = dataclasses.replace(NO_HEAD, layer_scale=True, mlp_dim=16)
DEIT = dataclasses.replace(PLAIN, distillation_token=True)
# (architecture, names) → target_modules, one of the names without base_model.model.
NAMES = {
    "vit 4": (
        (adapted(QUERY_VALUE), "transformers4"),
        ["query", "value"],
        "vit.encoder.layer.0.attention.attention.query.lora_A.weight",
    ),
    # "dense" alone would be the pooler, too.
    "vit 4, all": (
        (adapted(ALL), "transformers4"),
        ["query", "key", "value", "output.dense", "intermediate.dense"],
        "vit.encoder.layer.1.output.dense.lora_B.weight",
    ),
    # "output.dense" alone would be the projection after attention, too.
    "vit 4, fc2": (
        (adapted(("query", "fc2")), "transformers4"),
        r"(.*\.)?encoder\.layer\.\d+\.(attention\.attention\.query|output\.dense)",
        "vit.encoder.layer.1.output.dense.lora_B.weight",
    ),
    "vit 5, mlp": (
        (adapted(("fc1", "fc2")), "transformers5"),
        ["fc1", "fc2"],
        "vit.layers.1.mlp.fc2.lora_B.weight",
    ),
    "no head": (
        (adapted(("out",), NO_HEAD), "transformers5"),
        ["o_proj"],
        "layers.0.attention.o_proj.lora_A.weight",
    ),
    "dinov2": (
        (adapted(("key", "fc1"), DINOV2), "transformers5"),
        ["k_proj", "fc1"],
        "encoder.layer.0.attention.k_proj.lora_A.weight",
    ),
    "deit": (
        (adapted(("key",), DEIT), "transformers4"),
        ["key"],
        "distillation_classifier.bias",
    ),
    # "proj" alone would be the patch embedding, too.
    "timm": (
        (adapted(("out", "fc1")), "timm"),
        ["attn.proj", "fc1"],
        "blocks.1.attn.proj.lora_B.weight",
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_modules_have_the_names_of_their_library(kind):
    (architecture, names), targets, name = NAMES[kind]
    written = write(architecture, names)
    assert written.config["target_modules"] == targets
    assert f"base_model.model.{name}" in written.tensors


@pytest.mark.parametrize("stabilized", [False, True])
def test_adapters_of_a_packed_layer_become_blocks_on_request(stabilized):
    a = adapted(("query", "value", "fc1"), lora_rank_stabilized=stabilized)
    flat = params_of(a)
    with pytest.raises(UserError, match=r"need the rank 4 in place of 2.*expand_rank"):
        write(a, "timm", flat)
    written = write(a, "timm", flat, expand_rank=True)
    assert (written.config["r"], written.config["rank_pattern"]) == (2, {"qkv": 4})
    layer = "base_model.model.blocks.1.attn.qkv"
    down = written.tensors[f"{layer}.lora_A.weight"]
    up = written.tensors[f"{layer}.lora_B.weight"]
    assert (down.shape, up.shape) == ((4, 8), (24, 4))
    alpha = written.config["alpha_pattern"]["qkv"]
    scale = alpha / (4**0.5 if stabilized else 4)
    ours = 6 / (2**0.5 if stabilized else 2)

    def product(part):
        layer = f"blocks_01/attention/{part}"
        return ours * flat[f"{layer}/lora_a"] @ flat[f"{layer}/lora_b"]

    expected = [product("query"), np.zeros((8, 8)), product("value")]
    np.testing.assert_allclose(
        scale * (up @ down).T, np.concatenate(expected, 1), rtol=0, atol=1e-5
    )


def test_one_a_for_queries_keys_and_values_stays_one():
    a = adapted(("query", "key", "value"))
    flat = params_of(a)
    for i in range(2):
        for part in ("key", "value"):
            shared = flat[f"blocks_{i:02d}/attention/query/lora_a"]
            flat[f"blocks_{i:02d}/attention/{part}/lora_a"] = shared
    written = write(a, "timm", flat)
    assert written.config["rank_pattern"] == {}
    up = written.tensors["base_model.model.blocks.0.attn.qkv.lora_B.weight"]
    np.testing.assert_array_equal(up[8:16], flat["blocks_00/attention/key/lora_b"].T)


def test_biases_and_norms_that_were_trained_are_written():
    a = adapted(("query",))
    flat = params_of(a)
    biases = [path for path in flat if path.endswith("/bias")]
    written = write(a, "transformers5", flat, trained=[*biases, "head/kernel"])
    assert (written.config["bias"], written.config["modules_to_save"]) == (
        "all",
        ["classifier"],
    )
    start = "base_model.model.vit.layers.0.attention"
    for name, path in (("q_proj.base_layer", "query"), ("k_proj", "key")):
        np.testing.assert_array_equal(
            written.tensors[f"{start}.{name}.bias"],
            flat[f"blocks_00/attention/{path}/bias"],
        )
    written = write(a, "transformers5", flat, trained=["norm/scale"])
    assert written.config["modules_to_save"] == ["vit.layernorm"]
    np.testing.assert_array_equal(
        written.tensors["base_model.model.vit.layernorm.bias"], flat["norm/bias"]
    )
    assert "base_model.model.classifier.weight" not in written.tensors


WRONG = {
    "no adapters": (PLAIN, "timm", {}, "is for adapters, and this model has none"),
    "unknown names": (adapted(ALL), "transformer5", {}, "did you mean 'transformers5'"),
    "a head of another library": (
        adapted(("out",), PLAIN, pooling="gap", norm="after_pool"),
        "transformers5",
        {},
        "cannot express this model: .*the norm after pooling.* Names that can: timm",
    ),
    "what no module has": (
        adapted(("out",)),
        "timm",
        {"trained": ["cls", "blocks_00/attention/out/kernel"]},
        "has no place for what was trained beside the adapters: blocks_00/attention/out"
        "/kernel, cls",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_written_is_named(kind):
    architecture, names, how, message = WRONG[kind]
    with pytest.raises(UserError, match=message):
        write(architecture, names, **how)
