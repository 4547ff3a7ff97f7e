import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open

import vit_jax
from vit_jax import convert
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.errors import UserError
from vit_jax.models.adapters import is_adapter, is_head
from vit_jax.trees import chosen
from vit_jax.weights import adapter_directories, loading
from vit_jax.weights.formats.layout import flatten
from vit_jax.weights.loading import load_weights
from vit_jax.weights.published import download
from vit_jax.weights.saving import save_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "peft"
ADAPTER = GOLDEN / "vit_query_value_5"


def arrays(source, **how):
    return flatten(load_weights(source, **how).params)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


def copy(folder, **fields):
    shutil.copytree(ADAPTER, folder)
    path = folder / "adapter_config.json"
    base = {"base_model_name_or_path": str(GOLDEN / "vit")}
    path.write_text(json.dumps(json.loads(path.read_text()) | base | fields))
    return folder


def test_a_directory_is_loaded_beside_its_base(tmp_path):
    model = vit_jax.load(ADAPTER)
    assert (model.architecture.lora_rank, model.architecture.num_classes) == (2, 3)
    assert model.base["source"] == str((GOLDEN / "vit").resolve())
    assert model.preprocessing == vit_jax.load(GOLDEN / "vit").preprocessing
    merged = vit_jax.load(ADAPTER, merge=True)
    assert not merged.architecture.lora_rank
    layer, scale = merged.params["blocks_01"]["attention"]["value"], 4 / 2
    before = model.params["blocks_01"]["attention"]["value"]
    expected = before["kernel"] + scale * before["lora_a"] @ before["lora_b"]
    np.testing.assert_allclose(layer["kernel"], expected, rtol=0, atol=1e-6)
    # The file itself names the directory.
    assert_same(arrays(ADAPTER / "adapter_model.safetensors"), arrays(ADAPTER))


def test_a_pytorch_file_is_read(tmp_path, write_torch):
    folder = copy(tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "numpy") as tensors:
        found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    file.unlink()
    write_torch(folder / "adapter_model.bin", found)
    assert_same(arrays(folder), arrays(ADAPTER))


@pytest.mark.parametrize("names", ["transformers4", "transformers5", "timm"])
def test_there_and_back(names, tmp_path, run_command, capsys, caplog):
    written = tmp_path / "written"
    options = ["--expand_rank"] if names == "timm" else []
    run_command(convert, ADAPTER, written, "--to=peft", f"--names={names}", *options)
    assert f"wrote {written} in PEFT's format" in capsys.readouterr().out
    assert "load the base with a head of 3 classes" in caplog.text
    assert_same(arrays(written), arrays(ADAPTER))
    first, last = (load_weights(x).description for x in (ADAPTER, written))
    assert last.architecture == first.architecture
    assert last.class_names == first.class_names


def test_the_base_may_be_given(tmp_path):
    moved = shutil.copytree(GOLDEN / "vit", tmp_path / "moved")
    for name in ("elsewhere/vit", None):
        folder = copy(
            tmp_path / f"adapter {name is None}", base_model_name_or_path=name
        )
        assert_same(arrays(folder, base=moved), arrays(ADAPTER))


GOOGLE = "google/vit-base-patch16-224-in21k"
TIMM = "vit_tiny_patch16_224.augreg_in21k"


def test_names_on_the_hub_are_fetched(tmp_path):
    asked = []

    def load(source, **_):
        asked.append(source)
        raise UserError("not here")

    for name, revision, source in (
        ("me/mine", None, "hf:me/mine"),
        (GOOGLE, "v2", f"hf:{GOOGLE}@v2"),
        (GOOGLE, None, GOOGLE),
        (f"timm/{TIMM}", None, TIMM),
    ):
        folder = tmp_path / source.replace("/", "_")
        copy(folder, base_model_name_or_path=name, revision=revision)
        with pytest.raises(
            UserError, match=r"cannot be read from .*: not here\nIf it has"
        ):
            adapter_directories.read_directory(folder, None, load)
        assert asked.pop() == source


def test_adapters_on_the_hub_are_tried_after_models(tmp_path, monkeypatch):
    asked = []

    def transfer(url, path, **_):
        asked.append(url.rpartition("/")[2])
        source = ADAPTER / asked[-1]
        if not source.is_file():
            raise download.MissingFile(url, "404")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
        return "0" * 64

    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "offline", lambda: False)
    monkeypatch.setattr(download, "transfer", transfer)
    found = arrays("hf:someone/adapter", base=GOLDEN / "vit")
    assert asked[0] == "config.json"
    assert asked[-2:] == ["adapter_config.json", "adapter_model.safetensors"]
    assert_same(found, arrays(ADAPTER))


def test_another_base_is_refused_by_its_checksum(tmp_path, run_command):
    run_command(convert, ADAPTER, tmp_path / "written", "--to=peft")
    weights = load_weights(GOLDEN / "vit")
    weights.params["norm"]["scale"] = weights.params["norm"]["scale"] * 2
    save_weights(weights.description, weights.params, tmp_path / "other", "huggingface")
    with pytest.raises(
        UserError, match=r"were trained beside other weights: .*/other has"
    ):
        load_weights(tmp_path / "written", base=tmp_path / "other")


WRONG = {
    "no base": (
        {"base_model_name_or_path": ""},
        "does not say which model the adapter",
    ),
    "no such base": (
        {"base_model_name_or_path": "/models/vit"},
        "names the base /models/vit, which is neither a path .*: pass it as base=",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_base_that_is_not_found_is_explained(kind, tmp_path):
    fields, message = WRONG[kind]
    with pytest.raises(UserError, match=message):
        load_weights(copy(tmp_path / "adapter", **fields))


def test_a_missing_adapter_is_explained(tmp_path):
    folder = copy(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(UserError, match=r"but no adapter: fetch adapter_model\.safe"):
        load_weights(folder)


def test_an_adapter_without_its_config_is_explained(tmp_path):
    shutil.copy(ADAPTER / "adapter_model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"a LoRA adapter.*adapter_config\.json"):
        load_weights(tmp_path)


@pytest.fixture
def workdir(tmp_path):
    """A work directory that holds adapters and a head."""
    weights = load_weights(ADAPTER)
    about = dataclasses.replace(
        weights.description, class_names=("ape", "bat", "cat"), step=7
    )
    config = about.config | {"image_size": [8, 8]}
    params = chosen(weights.params, lambda path: is_adapter(path) or is_head(path))
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        items = {"params": params, "optimizer": {"count": np.zeros(())}}
        checkpoints.save(7, items, dataclasses.replace(about, config=config))
    return tmp_path / "run"


def test_a_run_with_adapters_is_written(workdir, tmp_path, run_command):
    written = tmp_path / "written"
    run_command(convert, workdir, written, "--to=peft")
    config = json.loads((written / "adapter_config.json").read_text())
    # The names of the library that the base is a model of.
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == str((GOLDEN / "vit").resolve())
    assert config["modules_to_save"] == ["classifier"]
    again = load_weights(written)
    assert again.description.class_names == ("ape", "bat", "cat")
    assert_same(flatten(again.params), arrays(workdir))
    # From a model, what was trained is found by comparing with the base.
    model = vit_jax.load(workdir)
    vit_jax.save(model, tmp_path / "saved", "peft")
    assert_same(arrays(tmp_path / "saved"), arrays(workdir))


def test_what_was_trained_beside_is_kept(tmp_path, run_command):
    # Biases of all blocks, and a norm.
    for name in ("vit_layers", "vit_regex"):
        run_command(convert, GOLDEN / name, tmp_path / name, "--to=peft")
        assert_same(arrays(tmp_path / name), arrays(GOLDEN / name))
        vit_jax.save(vit_jax.load(GOLDEN / name), tmp_path / f"{name} saved", "peft")
        assert_same(arrays(tmp_path / f"{name} saved"), arrays(GOLDEN / name))


def test_an_adapter_whose_base_is_unknown_is_not_written(tmp_path):
    weights = load_weights(ADAPTER)
    about = dataclasses.replace(weights.description, base={})
    with pytest.raises(UserError, match="nothing records which model these adapters"):
        save_weights(about, weights.params, tmp_path / "new", "peft")
    assert not (tmp_path / "new").exists()


def test_a_base_of_timm_suggests_its_names(tmp_path, run_command):
    run_command(convert, GOLDEN / "timm_all", tmp_path / "written", "--to=peft")
    config = json.loads((tmp_path / "written" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["qkv", "attn.proj", "fc1", "fc2"]
    assert config["rank_pattern"] == {}
    assert_same(arrays(tmp_path / "written"), arrays(GOLDEN / "timm_all"))


def test_a_merged_adapter_is_a_plain_model(tmp_path, run_command):
    run_command(convert, ADAPTER, tmp_path / "plain", "--to=huggingface", "--merge")
    a, b = vit_jax.load(tmp_path / "plain"), vit_jax.load(ADAPTER, merge=True)
    assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))


ARGUMENTS = {
    "names elsewhere": (
        ["--to=timm", "--names=timm"],
        "--names only matters with --to=p",
    ),
    "unknown names": (["--to=peft", "--names=tim"], "did you mean 'timm'"),
    "merging": (["--to=peft", "--merge"], "--merge leaves no adapters"),
    "a rank elsewhere": (
        ["--to=google", "--expand_rank"],
        "--expand_rank only matters",
    ),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_options_that_do_nothing_are_refused(kind, tmp_path, run_command):
    arguments, message = ARGUMENTS[kind]
    with pytest.raises(SystemExit, match=message):
        run_command(convert, ADAPTER, tmp_path / "x", *arguments)


def test_a_packed_layer_needs_a_choice(tmp_path, run_command):
    with pytest.raises(SystemExit, match="need the rank 4 in place of 2"):
        run_command(convert, ADAPTER, tmp_path / "x", "--to=peft", "--names=timm")
    assert not (tmp_path / "x").exists()


def test_a_model_without_adapters_is_not_written(tmp_path):
    weights = load_weights(GOLDEN / "vit")
    with pytest.raises(UserError, match="is for adapters, and this model has none"):
        save_weights(weights.description, weights.params, tmp_path / "x", "peft")


def test_entries_are_of_whole_files():
    with pytest.raises(UserError, match="entry='ema'"):
        loading.load_weights(ADAPTER, entry="ema")
