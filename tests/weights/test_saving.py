import dataclasses
import json
import logging
import pathlib
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import convert
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
def test_round_trip_is_bit_exact(case, tmp_path):
    format, name, architecture = EXPRESSIBLE[case]
    description, params = _model(architecture)

    assert save_weights(description, params, tmp_path / name, format) == tmp_path / name
    # Fixed positions are not in the file, so the image size has to be passed.
    found = load_weights(tmp_path / name, image_size=architecture.image_size)

    assert found.description.architecture == architecture
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert [x.name for x in tmp_path.iterdir()] == [name]
    if format == "vit_jax":
        assert found.description == description


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_labels_and_preprocessing_are_saved_too(format, tmp_path):
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
def test_features_that_a_format_cannot_express_are_named(
    format, fields, problem, tmp_path
):
    description, params = _model(_replace(**fields))
    name = "x.npz" if format in ("google", "big_vision") else "x"
    with pytest.raises(UserError, match="cannot express this model") as error:
        save_weights(description, params, tmp_path / name, format)
    assert problem in str(error.value)
    assert "vit_jax" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_lost_information_is_logged(tmp_path, caplog):
    description, params = _model(EXACT)
    with caplog.at_level(logging.WARNING):
        save_weights(description, params, tmp_path / "x.npz", "google")
    assert "GELU" in caplog.text


def test_timm_gets_fixed_positions_as_numbers(tmp_path, caplog):
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
        (None, "x.npz", "no format 'None': choose from google, .*, vit_jax"),
        (["google"], "x.npz", "choose from google, big_vision, .*, vit_jax"),
        (np.savez, "x.npz", "choose from google, big_vision, .*, vit_jax"),
    ],
)
def test_the_destination_must_suit_the_format(format, name, expected, tmp_path):
    description, params = _model(PLAIN)
    with pytest.raises(UserError, match=expected):
        save_weights(description, params, tmp_path / name, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["pth", "PT", "bin", "npz", "ckpt", "SAFETENSORS"])
@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("timm", "'mine.safetensors' or 'mine'"),
        ("huggingface", "'mine'"),
        ("google", "'mine.npz'"),
        ("vit_jax", "'mine.safetensors'"),
    ],
)
def test_endings_of_other_files_are_refused(ending, format, names, tmp_path):
    if (format, ending) == ("google", "npz"):
        return
    description, params = _model(PLAIN)
    with pytest.raises(UserError) as error:
        save_weights(description, params, tmp_path / f"mine.{ending}", format)
    assert f", not to .{ending}; choose a name such as {names}" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_directory_may_have_a_point_in_its_name(tmp_path):
    for name in ("vit-b16.v2", "mine.pth"):
        # An ending of a file only counts if the directory does not exist yet.
        if name.endswith(".pth"):
            (tmp_path / name).mkdir()
        assert save_weights(*_model(EXACT), tmp_path / name, "timm").is_dir()
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(UserError, match=r"x\.npz is a directory, expected a file"):
        save_weights(*_model(EXACT), tmp_path / "x.npz", "google")


@pytest.mark.parametrize(
    "address",
    [
        *("gs://bucket/x.npz", "https://host/x.npz", "file:///tmp/x.npz"),
        *("here/gs://bucket/x.npz", pathlib.Path("gs://bucket/x.npz")),
    ],
)
def test_addresses_are_refused_as_destinations(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    description, params = _model(PLAIN)
    with pytest.raises(UserError, match=r"is an address, .*path on this machine"):
        save_weights(description, params, address, "google")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["vit_jax", "google", "timm"])
def test_parameters_of_another_model_are_refused(format, tmp_path):
    description, params = _model(EXACT)
    params["extra"] = {"bias": np.zeros(3)}
    params["norm"] = {"scale": params["norm"]["scale"][:5]}
    params["head"]["bias"][1] = np.nan
    params["cls"][:] = -np.inf
    path = tmp_path / ("x.npz" if format == "google" else "x.safetensors")
    path.write_bytes(b"old")
    with pytest.raises(UserError) as error:
        save_weights(description, params, path, format)
    assert str(error.value).splitlines()[1:-1] == [
        "  1 missing: norm/bias",
        "  1 unexpected: extra/bias",
        "  1 different: norm/scale (expected [64], found [5])",
        "  2 with values that are not finite: 'cls', 'head/bias'",
    ]
    assert [x.name for x in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda params: params | {"cls": np.full((1, 1, 64), "a")}, "not finite: 'cls"),
        (lambda params: params | {"cls": None}, "1 missing: cls"),
        (lambda params: params | {"cls": 3.0}, r"cls \(expected \[1, 1, 64\], found"),
        (lambda params: {}, r"\d+ missing: blocks_00/"),
        (lambda params: [params], r"\d+ unexpected: 0/blocks_00/"),
    ],
)
def test_invalid_parameters_are_refused(wrong, problem, tmp_path):
    description, params = _model(PLAIN)
    with pytest.raises(UserError, match=problem):
        save_weights(description, wrong(params), tmp_path / "x.npz", "google")
    assert not list(tmp_path.iterdir())


def test_parameters_of_other_dtypes_are_saved_and_checked(tmp_path):
    description, params = _model(PLAIN)
    for dtype in (jnp.bfloat16, np.float16, np.int32):
        params["cls"] = np.ones((1, 1, 64), dtype)
        save_weights(description, params, tmp_path / "x.npz", "google")
        found = load_weights(tmp_path / "x.npz").params["cls"]
        np.testing.assert_array_equal(found, np.ones((1, 1, 64), np.float32))
    params["cls"] = np.full((1, 1, 64), np.nan, jnp.bfloat16)
    with pytest.raises(UserError, match="1 with values that are not finite: 'cls'"):
        save_weights(description, params, tmp_path / "x.npz", "google")


def _head(path):
    return load_weights(path).params["head"]["bias"]


@pytest.mark.parametrize(
    ("format", "name"),
    [("google", "x.npz"), ("vit_jax", "x.safetensors"), ("timm", "x.safetensors")],
)
def test_an_old_file_is_replaced_even_by_its_own_content(
    format, name, tmp_path, make_workdir, run_command, capsys
):
    path = tmp_path / name
    description, params = _model(EXACT)
    for bias in ([1, 2, 3], [4, 5, 6]):
        params["head"]["bias"] = np.array(bias, np.float32)
        save_weights(description, params, path, format)
        np.testing.assert_array_equal(_head(path), bias)
    save_weights(*load_weights(path), path, format)
    np.testing.assert_array_equal(_head(path), [4, 5, 6])
    run_command(convert, path, path, f"--to={format}")
    np.testing.assert_array_equal(_head(path), [4, 5, 6])
    workdir = make_workdir(tmp_path / "run")
    run_command(convert, workdir, path, f"--to={format}")
    np.testing.assert_array_equal(_head(path), _head(workdir))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["run", name]
    assert capsys.readouterr().out.count(f"wrote {path} in ") == 2


def test_a_directory_is_not_converted_onto_itself(tmp_path, run_command):
    path = tmp_path / "model"
    save_weights(*_model(EXACT), path, "huggingface")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(SystemExit, match="is not empty"):
        run_command(convert, path, path, "--to=huggingface")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [x.name for x in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
def test_a_conversion_that_cannot_be_written_leaves_the_old_file(name, tmp_path):
    format = {"x.npz": "google", "x.safetensors": "timm"}[name]
    path = tmp_path / name
    save_weights(*_model(EXACT), path, format)
    before = path.read_bytes()
    program = (
        "import resource, sys; from vit_jax import command, convert; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); "
        "command.run(convert.main, convert.FLAGS)"
    )
    command = [sys.executable, "-c", program, path, path, f"--to={format}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"{path} cannot be written: " in done.stderr
    assert "Nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "format"), [("mine/x.npz", "google"), ("mine/x", "huggingface")]
)
def test_a_file_where_a_directory_should_be_is_left_alone(name, format, tmp_path):
    (tmp_path / "mine").write_bytes(b"old")
    with pytest.raises(UserError, match=r"cannot be written.*Nothing was changed"):
        save_weights(*_model(EXACT), tmp_path / name, format)
    assert [x.name for x in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_bytes() == b"old"


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path):
    description, params = _model(EXACT)
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="is not empty"):
        save_weights(description, params, tmp_path, "huggingface")
    assert [x.name for x in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="is a file, expected a directory"):
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
