import dataclasses
import json
import logging
import resource

import jax
import numpy as np
import pytest

from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture, abstract_params
from vit_jax.weights.loading import load_weights
from vit_jax.weights.saving import save_weights

PLAIN = Architecture(
    width=64,
    depth=2,
    mlp_dim=32,
    num_heads=1,
    patch_size=(4, 4),
    image_size=(8, 8),
    num_classes=3,
)
EXACT = dataclasses.replace(PLAIN, gelu="exact")
MIXER = MixerArchitecture(
    width=16,
    depth=2,
    tokens_mlp_dim=8,
    mlp_dim=32,
    patch_size=(4, 4),
    image_size=(8, 8),
    num_classes=3,
)
NAMES = ("cat", "dog", "a bird")


def _model(architecture, names=NAMES, **preprocessing):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        abstract_params(architecture),
    )
    config = to_plain(default_config())
    preprocessing = Preprocessing(architecture.image_size, **preprocessing)
    return Description(architecture, preprocessing, names, config, step=7), params


def _replace(**fields):
    return dataclasses.replace(PLAIN, **fields)


# format, file name, architecture
EXPRESSIBLE = {
    "google": ("google", "x.npz", PLAIN),
    "google_gap": (
        "google",
        "x.npz",
        _replace(pooling="gap", class_token=False, class_token_position=False),
    ),
    "google_mixer": ("google", "x.npz", MIXER),
    "google_hybrid": (
        "google",
        "x.npz",
        _replace(trunk=(1,), patch_size=(4, 4), pre_logits=5),
    ),
    "big_vision": (
        "big_vision",
        "x.npz",
        _replace(class_token=False, class_token_position=False, pooling="map"),
    ),
    "big_vision_sincos": (
        "big_vision",
        "x.npz",
        _replace(
            class_token=False,
            class_token_position=False,
            pooling="gap",
            posemb="sincos2d",
        ),
    ),
    "timm": ("timm", "x", _replace(gelu="exact", registers=2, register_positions=True)),
    "timm_file": (
        "timm",
        "x.safetensors",
        _replace(registers=2, register_positions=True, num_heads=2),
    ),
    "timm_distilled": ("timm", "x", _replace(gelu="exact", distillation_token=True)),
    "huggingface": (
        "huggingface",
        "x",
        dataclasses.replace(EXACT, layernorm_epsilon=1e-12, num_heads=4),
    ),
    "vit_jax": (
        "vit_jax",
        "x.safetensors",
        _replace(pooling="map", layer_scale=True, trunk=(), patch_size=(4, 4)),
    ),
    "vit_jax_mixer": ("vit_jax", "x.safetensors", MIXER),
}


@pytest.mark.parametrize("case", EXPRESSIBLE)
def test_what_is_saved_loads_bit_for_bit(case, tmp_path):
    format, name, architecture = EXPRESSIBLE[case]
    description, params = _model(architecture)

    assert save_weights(description, params, tmp_path / name, format) == tmp_path / name
    # Fixed positions tell no image size: it has to be said.
    found = load_weights(tmp_path / name, image_size=architecture.image_size)

    assert found.description.architecture == architecture
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert [x.name for x in tmp_path.iterdir()] == [name]
    if format == "vit_jax":
        assert found.description == description


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_labels_and_preprocessing_travel_along(format, tmp_path):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    description, params = _model(EXACT, mean=mean, std=std)
    save_weights(description, params, tmp_path / "model", format)

    found = load_weights(tmp_path / "model").description
    assert found.class_names == NAMES
    assert found.preprocessing.mean == mean
    assert found.preprocessing.std == std


@pytest.mark.parametrize(
    ("format", "fields", "problem"),
    [
        ("google", {"pooling": "map"}, "pooling"),
        ("google", {"layer_scale": True}, "LayerScale"),
        ("google", {"registers": 3}, "register"),
        ("big_vision", {"distillation_token": True}, "distillation"),
        ("big_vision", {"trunk": (1,)}, "trunk"),
        ("huggingface", {"layer_scale": True, "registers": 1}, "LayerScale"),
        ("timm", {"pre_logits": 8}, "pre_logits"),
    ],
)
def test_what_a_format_cannot_express_is_named(format, fields, problem, tmp_path):
    description, params = _model(_replace(**fields))
    name = "x.npz" if format in ("google", "big_vision") else "x"
    with pytest.raises(UserError, match="cannot express this model") as error:
        save_weights(description, params, tmp_path / name, format)
    assert problem in str(error.value)
    assert "vit_jax" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_gets_lost_is_said(tmp_path, caplog):
    description, params = _model(EXACT)
    with caplog.at_level(logging.WARNING):
        save_weights(description, params, tmp_path / "x.npz", "google")
    assert "GELU" in caplog.text


def test_fixed_positions_are_written_out_where_they_have_no_name(tmp_path, caplog):
    architecture = _replace(gelu="exact", posemb="sincos2d", class_token_position=False)
    description, params = _model(architecture)
    with caplog.at_level(logging.WARNING):
        save_weights(description, params, tmp_path / "x", "timm")
    assert "the sin-cos positions are written out as numbers" in caplog.text
    found = load_weights(tmp_path / "x")
    assert found.description.architecture == dataclasses.replace(
        architecture, posemb="learned"
    )
    assert found.params["pos_embed"].shape == (1, 2, 2, 64)


@pytest.mark.parametrize(
    ("format", "name", "expected"),
    [
        ("google", "x", "a file NAME.npz"),
        ("google", "x.safetensors", "a file NAME.npz"),
        ("vit_jax", "x", "a file NAME.safetensors"),
        ("huggingface", "x.safetensors", "a directory"),
        ("timm", "x.npz", "a file NAME.safetensors or a directory"),
        ("gogle", "x.npz", "did you mean 'google'"),
    ],
)
def test_the_destination_must_suit_the_format(format, name, expected, tmp_path):
    description, params = _model(PLAIN)
    with pytest.raises(UserError, match=expected):
        save_weights(description, params, tmp_path / name, format)
    assert not list(tmp_path.iterdir())


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    description, params = _model(EXACT)
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="is not empty"):
        save_weights(description, params, tmp_path, "huggingface")
    assert [x.name for x in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="is a file, and a directory"):
        save_weights(description, params, tmp_path / "mine", "huggingface")
    with pytest.raises(UserError, match="cannot be written"):
        save_weights(description, params, tmp_path / "mine" / "x.npz", "google")
    (tmp_path / "new").mkdir()
    save_weights(description, params, tmp_path / "new", "huggingface")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "a bird"}


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "x"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(name, tmp_path):
    format = {"x.npz": "google", "x.safetensors": "vit_jax", "x": "timm"}[name]
    description, params = _model(EXACT)
    path = tmp_path / name
    if "." in name:
        path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written.*Nothing was changed"):
            save_weights(description, params, path, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = list(tmp_path.iterdir())
    assert left == ([path] if "." in name else [])
    assert "." not in name or path.read_bytes() == b"old"
