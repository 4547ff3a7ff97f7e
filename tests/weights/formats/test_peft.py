"""Adapters that PEFT made; tests/golden/make_peft_references.py wrote them."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import erf

from vit_jax.errors import UserError
from vit_jax.models import MixerArchitecture
from vit_jax.weights.adapter_directories import compared_with_base
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.layout import flatten
from vit_jax.weights.formats.peft import read_adapter
from vit_jax.weights.formats.peft_config import PeftConfig, read_config
from vit_jax.weights.loading import load_weights

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "peft"
with np.load(GOLDEN / "logits.npz") as file:
    LOGITS = dict(file)
IMAGES = 2 * np.sin(np.linspace(-1, 1, 2 * 3 * 8 * 8)).reshape(2, 3, 8, 8)


def logits(architecture, params, images=IMAGES):
    """Computes a Vision Transformer with adapters, in NumPy and float64."""
    a = architecture
    tree = {path: np.asarray(x, np.float64) for path, x in flatten(params).items()}
    root = a.lora_rank**0.5 if a.lora_rank_stabilized else a.lora_rank
    scale = a.lora_alpha / root if a.lora_rank else 0.0

    def dense(x, name):
        y = x @ tree[f"{name}/kernel"] + tree[f"{name}/bias"]
        if f"{name}/lora_a" in tree:
            y = y + scale * (x @ tree[f"{name}/lora_a"]) @ tree[f"{name}/lora_b"]
        return y

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + a.layernorm_epsilon)
        return x * tree[f"{name}/scale"] + tree[f"{name}/bias"]

    def attention(x, name):
        def heads(part):
            y = dense(x, f"{name}/{part}")
            return y.reshape(*y.shape[:2], a.num_heads, -1).transpose(0, 2, 1, 3)

        q, k, v = map(heads, ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = weights / weights.sum(-1, keepdims=True) @ v
        return dense(y.transpose(0, 2, 1, 3).reshape(x.shape), f"{name}/out")

    def mlp(x, name):
        y = dense(x, f"{name}/fc1")
        return dense(y * (1 + erf(y / np.sqrt(2))) / 2, f"{name}/fc2")

    patches = images.reshape(2, 3, 2, 4, 2, 4).transpose(0, 2, 4, 3, 5, 1)
    kernel = tree["patch_embed/kernel"].reshape(-1, a.width)
    x = patches.reshape(2, 4, -1) @ kernel + tree["patch_embed/bias"]
    tokens = [tree[n] for n in ("cls", "distillation") if n in tree]
    x = np.concatenate([*(np.repeat(token, 2, 0) for token in tokens), x], 1)
    positions = tree["pos_embed"].reshape(1, -1, a.width)
    x = x + np.concatenate([tree["pos_embed_prefix"], positions], 1)
    for i in range(a.depth):
        block = f"blocks_{i:02d}"
        for layer, inner, norms in ((attention, "attention", 1), (mlp, "mlp", 2)):
            y = layer(norm(x, f"{block}/norm{norms}"), f"{block}/{inner}")
            x = x + y * tree.get(f"{block}/layer_scale{norms}", 1.0)
    x = norm(x, "norm")
    pooled = x[:, 0]
    if a.pooling == "cls_gap":
        pooled = np.concatenate([x[:, 0], x[:, 1:].mean(1)], -1)
    found = dense(pooled, "head")
    if "head_distillation/kernel" in tree:
        return (found + dense(x[:, 1], "head_distillation")) / 2
    return found


def read(folder, **changes):
    """Reads an adapter beside its base, and returns (architecture, params)."""
    config = read_config(folder)
    weights = load_weights(folder / config.base)
    base, params = weights.description.architecture, weights.params
    base = dataclasses.replace(base, **changes)
    with open_tensors(folder / "adapter_model.safetensors") as tensors:
        return read_adapter(tensors, config, base, params)


@pytest.mark.parametrize("name", LOGITS)
def test_adapters_give_the_logits_of_peft(name, caplog):
    weights = load_weights(GOLDEN / name)
    found = logits(weights.description.architecture, weights.params)
    np.testing.assert_allclose(found, LOGITS[name], rtol=0, atol=1e-5)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert ("merged into the weights" in said) == (name in ("vit_dora", "vit_beside"))
    assert ("ranks 1, 2, 3: filled up with zeros to 3" in said) == ("patterns" in name)


def test_matrices_and_settings_are_read_as_they_are():
    weights = load_weights(GOLDEN / "vit_query_value_4")
    a = weights.description.architecture
    assert (a.lora_rank, a.lora_alpha, a.lora_rank_stabilized) == (2, 4.0, False)
    assert a.lora_targets == ("query", "value")
    theirs = load_file(GOLDEN / "vit_query_value_4" / "adapter_model.safetensors")
    layer = "base_model.model.vit.encoder.layer.1.attention.attention.value"
    value = weights.params["blocks_01"]["attention"]["value"]
    np.testing.assert_array_equal(value["lora_a"], theirs[f"{layer}.lora_A.weight"].T)
    np.testing.assert_array_equal(value["lora_b"], theirs[f"{layer}.lora_B.weight"].T)
    head = theirs["base_model.model.classifier.weight"]
    np.testing.assert_array_equal(weights.params["head"]["kernel"], head.T)
    assert "lora_a" not in weights.params["blocks_01"]["attention"]["key"]


def test_names_of_both_versions_mean_the_same():
    a, b = (load_weights(GOLDEN / f"vit_patterns_{version}") for version in (4, 5))
    assert a.description.architecture == b.description.architecture
    assert flatten(a.params).keys() == flatten(b.params).keys()
    trained = [compared_with_base(*x, load_weights).trained for x in (a, b)]
    assert trained[0] == trained[1]


def test_a_base_without_a_head_gets_the_adapters():
    # A tanh layer, which a classifier of transformers does not read.
    reading = read(GOLDEN / "vit_query_value_5", num_classes=0, pre_logits=8)
    assert (reading.architecture.num_classes, reading.architecture.pre_logits) == (3, 0)
    found = logits(reading.architecture, reading.params)
    np.testing.assert_allclose(found, LOGITS["vit_query_value_5"], atol=1e-5)


def test_a_classifier_may_read_other_features_than_its_base_gives():
    reading = read(GOLDEN / "dinov2_all", num_classes=0, pooling="cls")
    assert reading.architecture.pooling == "cls_gap"
    found = logits(reading.architecture, reading.params)
    np.testing.assert_allclose(found, LOGITS["dinov2_all"], atol=1e-5)
    assert any("reads the features 'cls_gap'" in said for said in reading.assumed)


def test_a_rank_above_the_matrix_is_merged(tmp_path):
    folder = copy(tmp_path, "vit_query_value_5", r=9, lora_alpha=18)

    def grown(name, x):
        zeros = np.zeros((7, 8), np.float32)
        if name.endswith("lora_A.weight"):
            return np.concatenate([x, zeros])
        return np.concatenate([x, zeros.T], 1) if "lora_B" in name else x

    edit(folder, lambda tensors: {n: grown(n, x) for n, x in tensors.items()})
    reading = read(folder)
    assert not reading.architecture.lora_rank
    assert "their rank exceeds a matrix" in reading.assumed[-1]
    found = logits(reading.architecture, reading.params)
    np.testing.assert_allclose(found, LOGITS["vit_query_value_5"], atol=1e-5)


def test_a_whole_state_dict_has_names_of_its_adapter(tmp_path):
    folder = copy(tmp_path, "vit_query_value_5")
    edit(
        folder,
        lambda tensors: {
            name.replace(".weight", ".mine.weight") if "lora_" in name else name: x
            for name, x in tensors.items()
        },
    )
    found = read(folder)
    np.testing.assert_allclose(
        logits(found.architecture, found.params), LOGITS["vit_query_value_5"], atol=1e-5
    )


def copy(tmp_path, name, **changes):
    """Copies a golden adapter, with other settings; None removes one."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / name, folder)
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    base = GOLDEN / name / fields["base_model_name_or_path"]
    fields["base_model_name_or_path"] = str(base.resolve())
    fields |= changes
    kept = {name: value for name, value in fields.items() if value is not Ellipsis}
    path.write_text(json.dumps(kept))
    return folder


def edit(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file(
        {n: np.ascontiguousarray(x) for n, x in change(load_file(file)).items()}, file
    )


CONFIGS = {
    "no rank": ({"r": ...}, "'r', the rank of the adapters, is missing"),
    "no kind": ({"peft_type": ...}, "not the config of an adapter of PEFT"),
    "another kind": ({"peft_type": "IA3"}, "an adapter of the kind 'IA3'"),
    "ranks": (
        {"r": 0, "lora_alpha": "x", "rank_pattern": {"(": 2}},
        r"r is '0', expected a whole number of 1 or more\n  lora_alpha is .*\n"
        "  rank_pattern is",
    ),
    "blocks": ({"layers_pattern": ["layer("]}, "layers_pattern is .*numbers of blocks"),
    "bias": (
        {"bias": "some"},
        "bias is .*some.*, expected 'none', 'all' or 'lora_only'",
    ),
    "pissa": (
        {"init_lora_weights": "pissa_niter_4"},
        "which changed the weights of the",
    ),
    "an unknown start": ({"init_lora_weights": "fancy"}, "which is not known"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "asks for aLoRA"),
    "several": (
        {"layer_replication": [[0, 1]], "target_parameters": ["w"]},
        "(?s)single parameters.*repeated layers",
    ),
    "unknown": (
        {"use_sparkle": True},
        "'use_sparkle' is 'True', and this release does",
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_wrong_settings_are_explained(kind, tmp_path):
    changes, message = CONFIGS[kind]
    folder = copy(tmp_path, "vit_query_value_5", **changes)
    with pytest.raises(UserError, match=message):
        load_weights(folder)


def test_a_config_that_is_not_json_is_explained(tmp_path):
    folder = copy(tmp_path, "vit_query_value_5")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        load_weights(folder)


QUERY = "base_model.model.vit.layers.0.attention.q_proj"


def renamed(old, new):
    return lambda tensors: {n.replace(old, new): x for n, x in tensors.items()}


def without(name):
    return lambda tensors: {n: x for n, x in tensors.items() if n != name}


TENSORS = {
    "a part": (
        without(f"{QUERY}.lora_B.weight"),
        "vit.layers.0.attention.q_proj: lora_B is missing",
    ),
    "a module": (
        lambda tensors: {n: x for n, x in tensors.items() if QUERY not in n},
        "gives these modules an adapter, but the file has none: vit.layers.0.attention",
    ),
    "a shape": (
        lambda tensors: tensors | {f"{QUERY}.lora_A.weight": np.zeros((2, 9), "f4")},
        r"q_proj.lora_A: expected \(2, 8\) for rank 2, found \(2, 9\)",
    ),
    "unknown modules": (
        renamed("q_proj", "q_porj"),
        r"changes 2 modules .* \(nearest: vit.layers.\*.attention.q_proj\)",
    ),
    "more blocks": (renamed("layers.1.", "layers.2."), "2 blocks.* does not have"),
    "another module": (
        lambda tensors: (
            tensors
            | {
                name.replace("q_proj", "k_proj"): x
                for name, x in tensors.items()
                if QUERY in name
            }
        ),
        r"gives these modules no adapter, but the file has one: vit\.layers",
    ),
    "two encoders": (
        lambda tensors: (
            tensors | {n.replace("vit.", "text."): x for n, x in tensors.items()}
        ),
        r"text.layers.\*.attention.q_proj",
    ),
    "no adapter": (
        lambda tensors: {n: x for n, x in tensors.items() if "classifier" in n},
        "holds no adapter",
    ),
    "not finite": (
        lambda tensors: (
            tensors | {f"{QUERY}.lora_A.weight": np.full((2, 8), np.nan, "f4")}
        ),
        "has 16 of 16 values that are NaN",
    ),
    "numbers of another kind": (
        lambda tensors: tensors | {f"{QUERY}.lora_A.weight": np.ones((2, 8), "i4")},
        r"q_proj.lora_A.weight \(int32\)",
    ),
    "a class too few": (
        lambda tensors: (
            tensors | {"base_model.model.classifier.bias": np.zeros(2, np.float32)}
        ),
        r"classifier.bias \(expected \(3,\), found \(2,\)\)",
    ),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_wrong_tensors_are_explained(kind, tmp_path):
    change, message = TENSORS[kind]
    folder = copy(tmp_path, "vit_query_value_5")
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        load_weights(folder)


def test_all_problems_are_one_message(tmp_path):
    folder = copy(tmp_path, "vit_query_value_5", r=3)
    with pytest.raises(UserError, match=r"for rank 3, found \(2, 8\)") as error:
        load_weights(folder)
    assert str(error.value).count("for rank 3") == 8
    assert "(2 blocks of width 8, MLPs of 12)" in str(error.value)


def test_another_base_is_refused(tmp_path):
    folder = copy(tmp_path, "vit_query_value_5")
    with pytest.raises(UserError, match=r"that this model .* does not have"):
        load_weights(folder, base=GOLDEN / "dinov2")


def test_a_mixer_has_no_adapters():
    mixer = MixerArchitecture(8, 1, 8, 8, (4, 4), (8, 8), 3)
    folder = GOLDEN / "vit_query_value_5"
    with (
        open_tensors(folder / "adapter_model.safetensors") as tensors,
        pytest.raises(UserError, match="adapter for Vision Transformers"),
    ):
        read_adapter(tensors, read_config(folder), mixer, {})


LAYER = "vit.layers.{}.attention.q_proj"
# Settings, module, and whether PEFT's check_target_module_exists finds it.
RULES = [
    ({"targets": ("q_proj",)}, LAYER.format(3), True),
    ({"targets": ("proj",)}, LAYER.format(3), False),
    ({"targets": ("attention.q_proj",)}, LAYER.format(3), True),
    ({"targets": r".*\.q_proj"}, LAYER.format(3), True),
    ({"targets": "q_proj"}, LAYER.format(3), False),
    ({"targets": ("q_proj",), "excluded": ("q_proj",)}, LAYER.format(3), False),
    (
        {"targets": ("q_proj",), "excluded": r"vit\.layers\.3\..*"},
        LAYER.format(3),
        False,
    ),
    ({"targets": ("q_proj",), "saved": ("layers.3",)}, LAYER.format(3), False),
    ({"targets": ("q_proj",), "layers": (3,)}, LAYER.format(3), True),
    ({"targets": ("q_proj",), "layers": (3,)}, LAYER.format(4), False),
    # Without a pattern, PEFT wants two names in front of the number.
    ({"targets": ("qkv",), "layers": (3,)}, "blocks.3.attn.qkv", False),
    (
        {"targets": ("qkv",), "layers": (3,), "layers_patterns": ("blocks",)},
        "blocks.3.attn.qkv",
        True,
    ),
    ({"targets": (LAYER.format(4),), "layers": (3,)}, LAYER.format(4), True),
]


@pytest.mark.parametrize("row", range(len(RULES)))
def test_modules_are_found_by_the_rules_of_peft(row):
    settings, module, expected = RULES[row]
    assert PeftConfig(2, 4.0, **settings).has_adapter(module) is expected


def test_patterns_name_ends_of_names():
    config = PeftConfig(
        2,
        4.0,
        rank_patterns={"q_proj": 8, "k_.*": 3},
        alpha_patterns={"layers.1.x": 6.0},
    )
    assert config.rank_of("layers.0.q_proj") == 8
    assert config.rank_of("layers.0.k_proj") == 3
    assert config.rank_of("layers.0.uq_proj") == 2
    assert config.scale_of("layers.1.x", 2) == 3.0
    assert config._replace(rank_stabilized=True).scale_of("y", 16) == 1.0
