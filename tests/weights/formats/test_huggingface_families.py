"""DINOv2, SigLIP and I-JEPA as transformers wrote them, against its outputs."""

import json
import pathlib

import jax
import numpy as np
import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, build
from vit_jax.weights.adapt import adapt
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.huggingface import FORMAT, companions
from vit_jax.weights.formats.known import FORMATS, read_tensors, to_tensors
from vit_jax.weights.formats.layout import Hints

LABELS = ("abacus", "bagel", "canoe", "daisy", "easel")
DIRECTORY = pathlib.Path(__file__).parents[2] / "golden" / "huggingface"
NO_TOKEN = {"class_token": False, "class_token_position": False}
DINOV2 = {"layer_scale": True, "mlp_dim": 32}
MAP = {**NO_TOKEN, "pooling": "map", "gelu": "tanh"}
GAP = {**NO_TOKEN, "pooling": "gap"}
HEAD = {"num_classes": 5}
# A model that transformers wrote → fields of its architecture that differ from `tiny`.
MODELS = {
    "dinov2": DINOV2,
    "dinov2_classifier": DINOV2 | HEAD | {"pooling": "cls_gap", "qkv_bias": False},
    "dinov2_registers": DINOV2 | {"registers": 3},
    "dinov2_registers_classifier": DINOV2
    | HEAD
    | {"pooling": "cls_gap", "registers": 3},
    "siglip_vision": MAP,
    "siglip": MAP,
    "siglip_classifier": GAP | HEAD | {"gelu": "tanh"},
    "ijepa": GAP | {"layernorm_epsilon": 1e-12},
    "ijepa_classifier": GAP | HEAD | {"layernorm_epsilon": 1e-12},
}
# Those whose own layout is written back.
WRITTEN = [name for name in MODELS if name != "siglip_classifier"]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny(**changes):
    sizes = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 4, "num_classes": 0}
    inputs = {"patch_size": (4, 4), "image_size": (16, 16)}
    numerics = {"gelu": "exact", "layernorm_epsilon": 1e-6}
    return Architecture(**sizes | inputs | numerics | changes)


@pytest.fixture
def outputs():
    """Returns a function: architecture, parameters, images → tokens, outputs."""

    def outputs(architecture, params, images):
        # Not compiled as a whole: operations of one shape are shared by all models.
        with jax.default_matmul_precision("highest"):
            found, middle = build(architecture).apply(
                {"params": params}, images, intermediates=("normed",)
            )
        return np.asarray(middle["normed"]), np.asarray(found)

    return outputs


@pytest.fixture
def read_all(tmp_path):
    """Returns a function: arrays, hints → Reading, nested parameters, as in a load."""

    def read_all(arrays, **hints):
        np.savez(path := tmp_path / "weights.npz", **arrays)
        with open_tensors(path) as tensors:
            return read_tensors(tensors, Hints(**hints))

    return read_all


def assert_close(found, expected):
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def is_mask_token(name):
    return name.endswith("embeddings.mask_token")


def encoder(arrays):
    """Returns what a file of the vision tower alone has, in the hub's names."""
    beside = ("text_model.", "logit_")
    arrays = {n: a for n, a in arrays.items() if not n.startswith(beside)}
    bare = "embeddings.patch_embedding.weight" in arrays
    return {"vision_model." * bare + name: array for name, array in arrays.items()}


@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_outputs(name, golden, read_all, outputs):
    stored = golden(f"huggingface/{name}")
    found, params = read_all(stored.arrays, **stored.hints)
    assert found.architecture == tiny(**MODELS[name])
    assert found.class_names == (LABELS if found.architecture.num_classes else ())
    left = [s for s in found.assumed if not s.startswith("left out")]
    assert not left
    tokens, logits = outputs(found.architecture, params, stored.reference["images"])
    assert_close(tokens, stored.reference["tokens"])
    assert_close(logits, stored.reference["logits"])


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers", "siglip", "ijepa"])
def test_a_rectangle_of_another_size(name, golden, read_all, outputs):
    stored = golden(f"huggingface/{name}")
    found, params = read_all(stored.arrays, **stored.hints)
    images = stored.resized["images"]
    a = tiny(**MODELS[name] | {"image_size": images.shape[1:3]})
    assert a.grid == (3, 6)
    params = adapt(params, found.architecture, a, posemb_resize=found.posemb_resize)
    tokens, logits = outputs(a, params, images)
    assert_close(tokens, stored.resized["tokens"])
    assert_close(logits, stored.resized["logits"])


@pytest.mark.parametrize("name", WRITTEN)
def test_files_return_bit_for_bit(name, golden, read_all, assert_same):
    stored = golden(f"huggingface/{name}")
    found, params = read_all(stored.arrays, **stored.hints)
    a = found.architecture
    assert not FORMAT.inexpressible(a)
    _, back, lost = to_tensors(FORMAT, a, params, found.preprocessing)
    expected = encoder(stored.arrays)
    masks = {n: np.zeros_like(x) for n, x in expected.items() if is_mask_token(n)}
    assert_same(back, expected | masks)
    assert any("mask token" in sentence for sentence in lost) == bool(masks)
    written = companions(a, found.preprocessing, found.class_names)
    again, same = read_all(
        back,
        config=written["config.json"],
        preprocessor=written["preprocessor_config.json"],
    )
    assert again._replace(assumed=()) == found._replace(assumed=())
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize("name", WRITTEN)
def test_companions_equal_those_of_transformers(name, golden, read_all):
    stored = golden(f"huggingface/{name}")
    found, _ = read_all(stored.arrays, **stored.hints)
    written = companions(found.architecture, found.preprocessing, found.class_names)
    config, theirs = written["config.json"], dict(stored.hints["config"])
    if name == "siglip":  # only the vision tower is written
        theirs = theirs["vision_config"] | {"architectures": ["SiglipVisionModel"]}
    theirs["torch_dtype"] = "float32"
    assert {key: theirs[key] for key in config} == config
    processor = written["preprocessor_config.json"]
    theirs = stored.hints["preprocessor"]
    assert {key: theirs[key] for key in processor} == processor
    assert theirs.keys() - processor.keys() == {"do_convert_rgb"} & theirs.keys()


@pytest.mark.parametrize("name", MODELS)
def test_names_in_memory(name, golden, read_all):
    """Those of version 5, which torch.save writes of a model's state dict."""
    stored = golden(f"huggingface/{name}")
    found, params = read_all(stored.arrays, **stored.hints)
    renames = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
    }
    if name.startswith("ijepa"):
        renames |= {
            "encoder.layer.": "layers.",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
        }
    in_memory = {}
    for file, array in stored.arrays.items():
        new = file
        for before, after in renames.items():
            new = new.replace(before, after)
        in_memory[new] = array
    names = json.loads((DIRECTORY / name / "state_dict.json").read_text())
    assert sorted(in_memory) == sorted(names)
    wrapped = {f"module.{new}": array for new, array in in_memory.items()}
    for arrays in (in_memory, wrapped):
        again, same = read_all(arrays, **stored.hints)
        assert again.architecture == found.architecture
        jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize("name", ["vit_model", "deit", "deit_teacher", "deit_model"])
def test_names_in_memory_of_vit_and_deit(name, golden, read_all):
    stored = golden(f"huggingface/{name}")
    found, params = read_all(stored.arrays, **stored.hints)
    in_memory = {}
    for file, array in stored.arrays.items():
        new = file.replace("encoder.layer.", "layers.")
        for before, after in (
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            new = new.replace(before, after)
        in_memory[new] = array
    assert in_memory.keys() & stored.arrays.keys() < stored.arrays.keys()
    again, same = read_all(in_memory, **stored.hints)
    assert again == found
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_checkpoint_of_pytorch_with_a_backbone_and_a_head(
    golden, write_torch, tmp_path
):
    """The backbone's names in memory behind a prefix, with a linear layer beside it."""
    stored = golden("huggingface/dinov2_registers")
    rng = np.random.default_rng(0)
    head = {
        "head.weight": rng.normal(size=(3, 16)).astype(np.float32),
        "head.bias": np.arange(3, dtype=np.float32),
    }
    saved = {f"backbone.{n}": a for n, a in stored.arrays.items()} | head
    path = write_torch(tmp_path / "run.pth", {"state_dict": saved, "epoch": 3})
    with open_tensors(path) as tensors:
        found, params = read_tensors(tensors, Hints(num_heads=4))
    a = tiny(**MODELS["dinov2_registers"], num_classes=3)
    assert found.architecture == a
    np.testing.assert_array_equal(params["head"]["kernel"], head["head.weight"].T)
    assert any("head reads the class token" in s for s in found.assumed)


def test_what_is_left_out_is_named(golden, read_all):
    def said(name, **changes):
        stored = golden(f"huggingface/{name}")
        found, _ = read_all(stored.arrays | changes, **stored.hints)
        (sentence,) = (s for s in found.assumed if s.startswith("left out"))
        return sentence

    assert "left out 1 of 43 tensors" in said("dinov2")
    assert said("dinov2").endswith(": embeddings.mask_token")
    assert "logit_bias, logit_scale, text_model." in said("siglip")
    # A classifier reads the mean of the patches, and not the attention pooling.
    assert "vision_model.head.attention" in said("siglip_classifier")
    numbers = {"embeddings.position_ids": np.arange(16)[None]}
    assert said("siglip_vision", **numbers).endswith(": embeddings.position_ids")


def test_defaults_of_configs_that_leave_them_out(golden, read_all):
    stored = golden("huggingface/siglip")
    config = {
        "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    heads = pytest.raises(UserError, match="says 12 attention heads")
    with heads:
        read_all(stored.arrays, config=config)
    found, _ = read_all(stored.arrays, config=config, num_heads=4)
    assert found.architecture == tiny(**MAP)
    assert not any("epsilon" in sentence for sentence in found.assumed)
    # Without a config, the defaults are assumed.
    found, _ = read_all(stored.arrays, num_heads=4)
    assert found.architecture == tiny(**MAP)
    assert any("epsilon: assumed 1e-06" in sentence for sentence in found.assumed)
    chain = "resize(interpolation='bicubic_antialias')"
    assert found.preprocessing == Preprocessing((16, 16), 3, chain)


def test_preprocessing_of_dinov2_is_in_proportion(golden, read_all):
    stored = golden("huggingface/dinov2")
    processor = stored.hints["preprocessor"] | {
        "size": {"shortest_edge": 9},
        "crop_size": {"height": 8, "width": 8},
    }
    hints = {"config": stored.hints["config"]}
    chain = "resize_small(18, 'bicubic_antialias', 'down')|central_crop"
    expected = Preprocessing((16, 16), 3, chain, *IMAGENET)
    found, _ = read_all(stored.arrays, preprocessor=processor, **hints)
    assert found.preprocessing == expected
    assert len(found.assumed) == 1 and found.assumed[0].startswith("left out 1 of")
    # The usual margin is assumed without a file.
    found, _ = read_all(stored.arrays, **hints)
    assert found.preprocessing == expected


def test_a_head_on_the_class_token_alone_is_an_assumption(golden, read_all, outputs):
    stored = golden("huggingface/dinov2_classifier")
    arrays = dict(stored.arrays)
    arrays["classifier.weight"] = arrays["classifier.weight"][:, :16]
    found, params = read_all(arrays, **stored.hints)
    assert found.architecture.pooling == "cls"
    assert any("the head reads the class token" in s for s in found.assumed)
    tokens, logits = outputs(found.architecture, params, stored.reference["images"])
    expected = tokens[:, 0] @ arrays["classifier.weight"].T + arrays["classifier.bias"]
    assert_close(logits, expected)


def test_a_classifier_of_ones_own_on_patches_is_an_assumption(golden, read_all):
    for name in ("siglip_classifier", "ijepa_classifier"):
        stored = golden(f"huggingface/{name}")
        hints = stored.hints | {"config": {}, "num_heads": 4}
        found, _ = read_all(stored.arrays, **hints)
        assert found.architecture.pooling == "gap"
        assert any("the head reads the mean of the p" in s for s in found.assumed)


@pytest.mark.parametrize(
    ("model", "name", "shape", "feature"),
    [
        ("dinov2", "encoder.layer.0.mlp.weights_in.weight", (16, 16), "SwiGLU"),
        ("dinov2", "encoder.layer.0.mlp.gate_proj.weight", (16, 16), "SwiGLU"),
        ("siglip", "vision_model.embeddings.patch_embedding.weight", (16, 48), "NaFl"),
        ("siglip", "vision_model.embeddings.register_tokens", (1, 2, 16), "register"),
        ("ijepa", "encoder.layer.0.layer_scale3.lambda1", (16,), "LayerScale"),
    ],
)
def test_features_that_are_refused_by_name(
    model, name, shape, feature, golden, read_all
):
    stored = golden(f"huggingface/{model}")
    arrays = stored.arrays | {name: np.ones(shape, np.float32)}
    with pytest.raises(UserError, match="vit_jax does not support") as error:
        read_all(arrays, **stored.hints)
    assert feature in str(error.value)


def test_clip_is_not_taken_for_siglip(golden, read_all):
    stored = golden("huggingface/siglip")
    clip = {
        "vision_model.embeddings.class_embedding": np.ones(16, np.float32),
        "vision_model.pre_layrnorm.weight": np.ones(16, np.float32),
    }
    for name, array in clip.items():
        with pytest.raises(UserError, match="a CLIP or SigLIP model in a layout that"):
            read_all(stored.arrays | {name: array}, **stored.hints)


def test_a_joint_matrix_without_dimensions_is_reported(golden, read_all):
    stored = golden("huggingface/siglip_vision")
    arrays = stored.arrays | {"head.attention.in_proj_weight": np.float32(0)}
    with pytest.raises(UserError, match=r"in_proj_weight \(expected \(48, 16\), found"):
        read_all(arrays, **stored.hints)


def test_a_config_of_another_model_is_refused(golden, read_all):
    stored = golden("huggingface/dinov2_registers")
    wrong = {"model_type": "dinov2", "mlp_ratio": 4, "num_register_tokens": 4}
    with pytest.raises(UserError, match="does not match the weights") as error:
        read_all(stored.arrays, config=stored.hints["config"] | wrong)
    for difference in (
        "model_type is 'dinov2' there but 'dinov2_with_registers' in the weights",
        "hidden_size · mlp_ratio is 64 there but 32 in the weights",
        "num_register_tokens is 4 there but 3 in the weights",
    ):
        assert difference in str(error.value)


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        (
            DINOV2 | {"pooling": "cls_gap"},
            "class token and the mean of the patches, si",
        ),
        (DINOV2 | HEAD, "LayerScale"),
        (DINOV2 | {"image_size": (8, 16)}, "images or patches that are not square"),
        (DINOV2 | {"mlp_dim": 24}, "MLPs whose width is no multiple"),
        (
            DINOV2 | {"registers": 2, "register_positions": True},
            "positions of register",
        ),
        (MAP | HEAD, "attention pooling"),
        (MAP | {"image_size": (8, 16)}, "images or patches that are not square"),
        (MAP | {"qkv_bias": False}, "queries, keys and values without bias"),
        (GAP | {"pre_logits": 4}, "a tanh layer"),
        (GAP | {"registers": 2}, "register tokens"),
    ],
)
def test_what_transformers_cannot_express_is_named(fields, phrase):
    assert FORMAT.inexpressible(tiny(**fields)) == [
        next(p for p in FORMAT.inexpressible(tiny(**fields)) if phrase in p)
    ]


def test_other_formats_name_a_head_on_token_and_patches():
    a = tiny(pooling="cls_gap", num_classes=5)
    for name, format in FORMATS.items():
        found = "; ".join(format.inexpressible(a))
        if name == "torchvision":
            assert "pooling other than the class token" in found
        else:
            assert "the class token and the mean of the patches, side by side" in found


def test_what_transformers_does_not_return_is_named():
    images = Preprocessing((16, 16), 3, "resize(interpolation='bilinear_antialias')")
    (sentence,) = FORMAT.lost(tiny(**GAP), images)
    assert "returns the tokens of a model without a head" in sentence
    assert FORMAT.lost(tiny(**GAP | HEAD), images) == []
