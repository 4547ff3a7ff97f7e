import json
import zipfile

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.weights.files.directories import companion, holds_model, weight_file


@pytest.fixture
def folder(tmp_path):
    """Returns a function that creates empty files and files with content."""

    def folder(*names, **contents):
        for name in names:
            (tmp_path / name).touch()
        for name, content in contents.items():
            (tmp_path / name.replace("__", ".")).write_text(content)
        return tmp_path

    return folder


SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
BINS = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["x.npz", "README.md"], "x.npz"),
        (["model.safetensors", "pytorch_model.bin", "a.npz"], "model.safetensors"),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
        (["model.safetensors.index.json", *SHARDS], "model.safetensors.index.json"),
        (["pytorch_model.bin.index.json", *BINS], "pytorch_model.bin.index.json"),
        (
            ["pytorch_model.bin.index.json", *BINS, "training_args.bin"],
            "pytorch_model.bin.index.json",
        ),
        (
            ["pytorch_model.bin", "model.safetensors.index.json", *SHARDS],
            "model.safetensors.index.json",
        ),
        (["vit.safetensors.index.json", *SHARDS], "vit.safetensors.index.json"),
        # A single shard is the whole model.
        (["model-00001-of-00001.safetensors"], "model-00001-of-00001.safetensors"),
    ],
)
def test_the_file_with_the_weights(names, chosen, folder):
    path = folder(*names)
    assert weight_file(path) == path / chosen
    assert weight_file(path / chosen) == path / chosen


@pytest.mark.parametrize(
    ("shards", "index"),
    [
        (SHARDS, "model.safetensors.index.json"),
        (BINS, "pytorch_model.bin.index.json"),
    ],
)
def test_shards_without_their_index(shards, index, folder):
    with pytest.raises(UserError, match="it holds 2 shards of a model, but") as error:
        weight_file(folder(*shards))
    assert str(error.value).endswith(f"Fetch {index} into it")
    with pytest.raises(UserError, match=f"Fetch {index} into it, or pass other.npz$"):
        weight_file(folder("other.npz"))


def test_weights_in_formats_that_are_not_read(folder):
    path = folder("tf_model.h5", "flax_model.msgpack", "x.ckpt.index", "vit.onnx")
    with pytest.raises(
        UserError, match="formats that vit_jax does not read: "
    ) as error:
        weight_file(path)
    for part in (
        "flax_model.msgpack (Flax), tf_model.h5 (Keras), vit.onnx (ONNX), x.ckpt.index "
        "(TensorFlow)",
        "Fetch one of model.safetensors or model.safetensors.index.json or",
        "or convert them with the library that wrote them",
    ):
        assert part in str(error.value)


def test_a_checkpoint_of_lightning_is_read_as_pytorch(folder):
    path = folder(epoch__ckpt="HDF")
    with pytest.raises(UserError, match=r"epoch\.ckpt \(TensorFlow\)"):
        weight_file(path)
    with zipfile.ZipFile(path / "epoch.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", b"")
    assert weight_file(path) == path / "epoch.ckpt"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["checkpoint.pth.tar", "model_best.pth.tar"], "model_best.pth.tar"),
        (["checkpoint-9.pth.tar", "last.pth.tar"], "last.pth.tar"),
        (["best_checkpoint.pth", "checkpoint.pth"], "best_checkpoint.pth"),
        (["epoch_2.pth", "epoch_10.pth", "epoch_9.pth"], "epoch_10.pth"),
        (["best_top1_epoch_9.pth", "best_top1_epoch_12.pth"], "best_top1_epoch_12.pth"),
        (["checkpoint.pth", "linear.pth"], "checkpoint.pth"),
        (["BEST.pt", "last.pt"], "BEST.pt"),
        (["BEST.PTH", "last.pth"], "BEST.PTH"),
    ],
)
def test_the_best_or_last_checkpoint_of_a_run(names, chosen, folder, caplog):
    path = folder(*names, "args.yaml", "optimizer.pt", "rng_state.pth")
    assert weight_file(path) == path / chosen
    (other, *_) = sorted({*names} - {chosen})
    assert f"took {chosen}; " in caplog.text and other in caplog.text
    assert "optimizer" not in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["best_loss.pth", "best_top1.pth"],
        ["fold1_epoch2.pth", "fold2_epoch1.pth"],
        ["fold1.pth", "fold2.pth"],
        ["encoder.pth", "decoder.pth"],
    ],
)
def test_checkpoints_among_which_nothing_decides(names, folder):
    with pytest.raises(UserError, match=f"pass one of {', '.join(sorted(names))}"):
        weight_file(folder(*names))


def test_files_of_training_are_not_weights(folder, caplog):
    path = folder("optimizer.bin", "scheduler.bin", "random_states_0.pt", "vit.bin")
    assert weight_file(path) == path / "vit.bin"
    assert not caplog.text


def test_checkpoints_in_folders_are_named(folder):
    path = folder("trainer_state.json")
    for step in (500, 1000):
        (path / f"checkpoint-{step}").mkdir()
        (path / f"checkpoint-{step}" / "model.safetensors").touch()
    (path / "logs").mkdir()
    with pytest.raises(UserError, match=r"inside: checkpoint-1000, checkpoint-500$"):
        weight_file(path)


def test_a_checkpoint_of_orbax_is_named(folder):
    with pytest.raises(UserError, match="an Orbax checkpoint of another program"):
        weight_file(folder("_METADATA", "manifest.ocdbt"))


def test_file_names_cannot_break_a_message(folder):
    path = folder(*(f"\x1b[31m{i}\n.npz" for i in range(12)))
    with pytest.raises(UserError, match=r"'\\x1b\[31m0\\n\.npz', .* and 2 more") as e:
        weight_file(path)
    assert "\x1b" not in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("contents", "is_model"),
    [
        ({}, False),
        ({"config__json": json.dumps({"model_type": "vit"})}, True),
        ({"config__json": json.dumps({"architecture": "vit"})}, True),
        ({"config__json": json.dumps({"seed": 0})}, False),
        ({"config__json": json.dumps({"model_type": None})}, False),
        ({"config__json": "{"}, False),
        ({"config__json": "[" * 100_000}, False),
        ({"config__json": "[]"}, False),
        ({"model__safetensors": ""}, True),
        ({"tf_model__h5": ""}, True),
        ({"README__md": ""}, False),
    ],
)
def test_model_directories_are_recognised(contents, is_model, folder):
    assert holds_model(folder(**contents)) == is_model


def test_a_path_that_is_not_a_directory_holds_no_model(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    assert not holds_model(tmp_path / "a.npz")
    assert not holds_model(tmp_path / "absent")
    assert not holds_model(tmp_path / ("x" * 5000))


def test_companions_must_be_json_objects(folder):
    path = folder("a.npz", config__json="[1]", preprocessor_config__json='{"size": 8}')
    assert companion(path / "a.npz", "config.json") == {}
    assert companion(path / "a.npz", "preprocessor_config.json") == {"size": 8}
    assert companion(path / "config.json", "config.json") == {}
