import json
import logging

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.steps import load_params
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, abstract_params
from vit_jax.weights.formats.single_file import as_single_file
from vit_jax.weights.loading import load_weights
from vit_jax.weights.saving import save_weights


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def workdir(shared, make_workdir):
    path = shared / "run"
    if not path.exists():
        make_workdir(path, class_names=("cat", "dog"), steps=(2, 3))
    return path


@pytest.mark.parametrize(
    ("below", "step"),
    [("", 3), ("checkpoints", 3), ("checkpoints/3", 3), ("checkpoints/2", 2)],
)
def test_reads_description_and_parameters(workdir, below, step):
    weights = load_weights(workdir / below)

    assert weights.description.class_names == ("cat", "dog")
    assert weights.description.architecture.width == 16
    assert weights.description.step == step
    expected = load_params(workdir)
    assert expected["head"]["kernel"].any()
    jax.tree.map(np.testing.assert_array_equal, weights.params, expected)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(weights.params))


def test_reads_relative_paths(workdir, monkeypatch):
    monkeypatch.chdir(workdir / "checkpoints")

    assert load_weights("2").description.step == 2
    assert load_weights("..").description.step == 3


def test_a_step_that_is_not_there_is_named(workdir):
    with pytest.raises(UserError, match="no checkpoint of step 4; there are 2, 3"):
        load_weights(workdir / "checkpoints" / "4")


def test_a_missing_published_file_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "ViT-B_16.npz")

    message = str(error.value)
    assert str(tmp_path / "ViT-B_16.npz") in message
    address = "https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz"
    assert address in message


def test_another_missing_path_says_what_is_expected(tmp_path):
    with pytest.raises(
        UserError, match=r"nothing at .*/absent\. Pass a work directory"
    ):
        load_weights(tmp_path / "absent")
    with pytest.raises(UserError, match="neither a path on this machine nor published"):
        load_weights("absent/run")
    with pytest.raises(UserError, match="neither a path on this machine nor published"):
        load_weights("x" * 5000)


# Foreign files and directories


@pytest.fixture
def model(tmp_path):
    """A directory of Hugging Face's, with weights of width 64."""
    architecture = Architecture(
        width=64,
        depth=1,
        mlp_dim=8,
        num_heads=4,
        patch_size=(4, 4),
        image_size=(8, 8),
        num_classes=2,
        gelu="exact",
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        abstract_params(architecture),
    )
    description = Description(
        architecture,
        Preprocessing((8, 8)),
        ("cat", "dog"),
        to_plain(default_config()),
        0,
    )
    return save_weights(description, params, tmp_path / "model", "huggingface")


def test_a_model_directory_is_found_by_its_files(model):
    found = load_weights(model).description
    assert found.class_names == ("cat", "dog")
    assert found.architecture.num_heads == 4
    assert found.step == 0
    # Nobody trained it here: there is no data set to evaluate it on.
    assert found.config["dataset"] == ""
    assert load_weights(model / "model.safetensors").description == found


def test_without_its_config_heads_are_assumed_and_said_or_taken_as_told(model, caplog):
    (model / "config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert load_weights(model).description.architecture.num_heads == 1
    assert "attention heads" in caplog.text
    found = load_weights(model, num_heads=2)
    assert found.description.architecture.num_heads == 2


def test_a_config_of_something_else_is_no_companion(model):
    (model / "config.json").write_text(json.dumps({"learning_rate": 0.1}))
    assert load_weights(model).description.architecture.num_heads == 1


def test_a_damaged_companion_is_named(model):
    (model / "config.json").write_text("{ not json")
    with pytest.raises(
        UserError, match=r"config\.json beside the weights cannot be read"
    ):
        load_weights(model)


def test_several_files_are_a_choice_to_make(tmp_path):
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, cls=np.zeros((1, 1, 4)))
    with pytest.raises(UserError, match=r"pass one of a\.npz, b\.npz"):
        load_weights(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="an empty directory: no weights are in it"):
        load_weights(tmp_path / "empty")


def test_names_of_no_known_model_are_shown(tmp_path):
    np.savez(tmp_path / "x.npz", layer1=np.zeros(3), layer2=np.zeros(3))
    with pytest.raises(
        UserError, match=r"2 tensors \(layer1, layer2\) that are named li"
    ):
        load_weights(tmp_path / "x.npz")


def test_what_is_missing_unexpected_and_misshaped_comes_at_once(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    del tensors["classifier.bias"], tensors["vit.encoder.layer.0.layernorm_after.bias"]
    tensors |= {f"vit.extra.{i}": np.zeros(1, np.float32) for i in range(12)}
    tensors["vit.layernorm.weight"] = np.zeros(3, np.float32)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(model)
    message = str(error.value)
    assert "2 missing: classifier.bias, vit.encoder.layer.0.layernorm_after.bias" in (
        message
    )
    assert "12 unexpected: vit.extra.0" in message
    assert "and 2 more" in message
    assert "1 of another shape: vit.layernorm.weight (expected (64,), found (3,))" in (
        message
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(bad, model):
    tensors = load_file(model / "model.safetensors")
    tensors["vit.layernorm.weight"][3:5] = bad
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(
        UserError,
        match=r"tensor vit\.layernorm\.weight has 2 of 64 values that are NaN",
    ):
        load_weights(model)


def test_large_numbers_are_no_mistake(model):
    tensors = load_file(model / "model.safetensors")
    tensors["vit.layernorm.weight"][:] = 1e30  # their squares overflow
    save_file(tensors, model / "model.safetensors")
    assert load_weights(model).params["norm"]["scale"][0] == np.float32(1e30)


def test_our_own_file_with_a_damaged_description_is_refused(model, tmp_path):
    weights = load_weights(model)
    path = save_weights(*weights, tmp_path / "x.safetensors")
    arrays, metadata = as_single_file(*weights)
    for text in ("{", "[]", "null", '{"schema_version": 1}', "[" * 100_000):
        save_file(arrays, path, metadata | {"vit_jax": text})
        with pytest.raises(UserError, match=r"x\.safetensors"):
            load_weights(path)
    description = json.loads(metadata["vit_jax"])
    description["architecture"]["depth"] = 2
    save_file(arrays, path, {"vit_jax": json.dumps(description)})
    with pytest.raises(UserError, match="16 missing: blocks_01/"):
        load_weights(path)
