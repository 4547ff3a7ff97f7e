import io
import json
import logging
import shutil
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.reading import load_params
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


def test_a_missing_step_is_named(workdir):
    with pytest.raises(UserError, match="at step 4; there are checkpoints at 2, 3"):
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


def test_a_size_at_which_a_run_was_not_trained_is_refused(workdir):
    known = load_weights(workdir).description.architecture.image_size
    assert load_weights(workdir, trained_image_size=known).description.step == 3
    with pytest.raises(
        UserError, match=r"trained_image_size=\(9, 9\), but .*/run records"
    ):
        load_weights(workdir, trained_image_size=(9, 9))


# Foreign files and directories


@pytest.fixture
def model(tmp_path):
    """Saves a model directory in Hugging Face's format, with weights of width 64."""
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
    # It was not trained here, so there is no dataset to evaluate it on.
    assert found.config["dataset"] == ""
    assert load_weights(model / "model.safetensors").description == found


def test_without_a_config_the_number_of_heads_is_assumed_or_passed(model, caplog):
    (model / "config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert load_weights(model).description.architecture.num_heads == 1
    assert "attention heads" in caplog.text
    found = load_weights(model, num_heads=2)
    assert found.description.architecture.num_heads == 2


def test_a_config_of_other_software_is_ignored(model):
    (model / "config.json").write_text(json.dumps({"learning_rate": 0.1}))
    assert load_weights(model).description.architecture.num_heads == 1


def test_a_damaged_companion_is_named(model):
    (model / "config.json").write_text("{ not json")
    with pytest.raises(
        UserError, match=r"config\.json beside the weights cannot be read"
    ):
        load_weights(model)


@pytest.mark.parametrize(
    "place",
    ["checkpoints/1000", "checkpoints", "checkpoints/checkpoints", "1000", "run"],
)
def test_a_model_directory_may_have_any_name(place, model, tmp_path):
    expected = load_weights(model).description
    path = tmp_path / "place" / place
    path.parent.mkdir(parents=True)
    model.rename(path)
    # Nor do other folders in it matter.
    (path / "checkpoints" / "1000").mkdir(parents=True)
    assert load_weights(path).description == expected
    (path / "config.json").unlink()
    assert load_weights(path, num_heads=4).description.architecture.num_heads == 4


def test_a_models_config_comes_before_checkpoints(model):
    expected = load_weights(model).description
    (model / "checkpoints" / "3" / "params").mkdir(parents=True)
    assert load_weights(model).description == expected


def test_weights_beside_a_runs_checkpoints_are_not_the_run(workdir):
    np.savez(workdir / "exported.npz", a=np.zeros(1))
    try:
        assert load_weights(workdir).description.step == 3
        assert load_weights(workdir / "checkpoints").description.step == 3
    finally:
        (workdir / "exported.npz").unlink()


def test_models_in_the_place_of_checkpoints_are_named(model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    model.rename(tmp_path / "checkpoints" / "1000")
    for path in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(UserError, match="foreign models but no checkpoint") as e:
            load_weights(path)
        assert str(e.value).endswith("pass the path of one, such as 1000 in it")
    assert load_weights(tmp_path / "checkpoints" / "1000").description.step == 0


def test_a_folder_of_lightning_is_not_an_unfinished_run(model, tmp_path):
    """Its own layout, version_0/checkpoints/NAME.ckpt, is like that of a run."""
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(model / "model.safetensors", folder / "last.safetensors")
    with pytest.raises(UserError, match=r"path of a model inside: checkpoints$"):
        load_weights(folder.parent)
    assert load_weights(folder, num_heads=4).description.architecture.num_heads == 4


def test_a_file_called_like_a_step(model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "1000"
    (model / "model.safetensors").rename(path)
    assert load_weights(path, num_heads=4).description.architecture.num_heads == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["tf_model.h5"], r"that vit_jax does not read: tf_model\.h5 \(Keras\)"),
        (["flax_model.msgpack"], r"does not read: flax_model\.msgpack \(Flax\)"),
        ([], r"holds config\.json: it holds no weights"),
    ],
)
def test_a_model_without_readable_weights_is_not_taken_for_a_run(
    files, message, tmp_path
):
    config = {"model_type": "vit", "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=message) as error:
        load_weights(tmp_path)
    assert "model.safetensors" in str(error.value)


def test_a_run_that_has_saved_nothing_says_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(UserError, match="a run was started in it"):
        load_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        load_weights(tmp_path)


def test_shards_are_read_by_their_index(model):
    expected = load_weights(model)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = list(tensors.items())[:half], list(tensors.items())[half:]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        # The format is recognised by the content, not by the name.
        name = f"pytorch_model-0000{number}-of-00002.bin"
        save_file(dict(part), model / name)
        weight_map |= {tensor: name for tensor, _ in part}
    with pytest.raises(
        UserError, match=r"Fetch pytorch_model\.bin\.index\.json into it"
    ):
        load_weights(model)
    index = model / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = load_weights(model)
    assert found.description == expected.description
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_config_in_the_file_comes_before_one_beside_it(model, tmp_path):
    weights = load_weights(model)
    path = save_weights(*weights, tmp_path / "x.safetensors", "timm")
    other = {"architecture": "vit", "model_args": {"num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    assert load_weights(path).description.architecture.num_heads == 4
    # An embedded config of other software is ignored.
    save_file(load_file(path), path, {"config": json.dumps({"num_heads": 1})})
    assert load_weights(path).description.architecture.num_heads == 2


@pytest.fixture
def two(model, write_torch, tmp_path):
    """Saves a checkpoint with a model and its average, whose numbers are doubled."""
    arrays = load_file(model / "model.safetensors")
    doubled = {name: 2 * array for name, array in arrays.items()}
    saved = {"epoch": 3, "model": arrays, "model_ema": {"module": doubled}}
    return write_torch(tmp_path / "model_best.pth.tar", saved)


def test_averaged_weights_are_preferred_and_logged(model, two, caplog):
    with caplog.at_level(logging.WARNING):
        found = load_weights(two, num_heads=4).params
    expected = load_weights(model).params
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), found, expected)
    message = "read the entry model_ema/module of the file, which also has model"
    assert message in caplog.text


@pytest.mark.parametrize("entry", ["model", "model_ema", "module"])
def test_an_entry_is_named_by_an_argument_or_after_the_path(entry, model, two):
    factor = 1 if entry == "model" else 2
    expected = jax.tree.map(lambda x: factor * x, load_weights(model).params)
    for found in (
        load_weights(two, num_heads=4, entry=entry),
        load_weights(f"{two}#entry={entry}", num_heads=4),
        load_weights(f"{two.parent}#entry={entry}", num_heads=4),
        load_weights(f"{two.as_uri()}#entry={entry}", num_heads=4),
    ):
        jax.tree.map(np.testing.assert_array_equal, found.params, expected)


def test_entries_that_cannot_be_chosen(model, two, workdir, tmp_path):
    with pytest.raises(UserError, match=r"entry='a', but .* names the entry 'b'"):
        load_weights(f"{two}#entry=b", entry="a")
    with pytest.raises(UserError, match="is a work directory, which has no entries"):
        load_weights(workdir, entry="ema")
    path = save_weights(*load_weights(model), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds a single model: omit it"):
        load_weights(path, entry="ema")
    odd = tmp_path / "x#entry=1.pth"
    two.rename(odd)
    assert load_weights(odd, num_heads=4).description.architecture.num_heads == 4


def test_several_files_are_listed_to_choose_from(tmp_path):
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, cls=np.zeros((1, 1, 4)))
    with pytest.raises(UserError, match=r"pass one of a\.npz, b\.npz"):
        load_weights(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="an empty directory: it holds no weights"):
        load_weights(tmp_path / "empty")


def test_names_that_no_format_knows_are_shown(tmp_path):
    np.savez(tmp_path / "x.npz", layer1=np.zeros(3), layer2=np.zeros(3))
    with pytest.raises(
        UserError, match=r"2 tensors \(layer1, layer2\) whose names are not those"
    ):
        load_weights(tmp_path / "x.npz")


def test_missing_unexpected_and_misshaped_tensors_are_reported_at_once(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    del tensors["vit.layernorm.bias"]
    del tensors["vit.encoder.layer.0.layernorm_after.bias"]
    tensors |= {f"vit.extra.{i}": np.zeros(1, np.float32) for i in range(12)}
    tensors["vit.layernorm.weight"] = np.zeros(3, np.float32)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(model)
    message = str(error.value)
    missing = "vit.encoder.layer.0.layernorm_after.bias, vit.layernorm.bias"
    assert f"2 missing: {missing}" in message
    assert "12 unexpected: vit.extra.0" in message
    assert "and 2 more" in message
    assert "1 of another shape: vit.layernorm.weight (expected (64,), found (3,))" in (
        message
    )


@pytest.mark.parametrize("text", ["<U1", ">U3", "S1", "S4"])
def test_texts_are_refused_in_one_message(text, model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    name = "vit.layernorm.weight"
    tensors[name] = np.full(tensors[name].shape, "1").astype(text)
    np.savez(tmp_path / "x.npz", **tensors)
    with pytest.raises(
        UserError, match=r"weights are not saved in: vit\.layernorm\.we"
    ):
        load_weights(tmp_path / "x.npz", num_heads=4)


def test_a_header_that_was_damaged_to_declare_text_is_refused(model, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **load_file(model / "model.safetensors"))
    damaged = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(damaged, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"'<f4'", b"'|S4'"))
    path.write_bytes(damaged.getvalue())
    with pytest.raises(UserError, match=r"24 of a type that weights are not saved in"):
        load_weights(path, num_heads=4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad, model):
    tensors = load_file(model / "model.safetensors")
    tensors["vit.layernorm.weight"][3:5] = bad
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(
        UserError,
        match=r"tensor vit\.layernorm\.weight has 2 of 64 values that are NaN",
    ):
        load_weights(model)


def test_large_finite_values_are_accepted(model):
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
