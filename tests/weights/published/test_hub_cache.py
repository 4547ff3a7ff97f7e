"""Hugging Face's own cache, laid out as huggingface_hub does."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.errors import UserError
from vit_jax.weights.loading import load_weights
from vit_jax.weights.published import download
from vit_jax.weights.published.hub_cache import hub_cache

COMMIT = "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def transfer(url, *_, **__):
        raise AssertionError(f"asked the network for {url}")

    monkeypatch.setattr(download, "transfer", transfer)
    monkeypatch.delenv("VIT_JAX_OFFLINE", raising=False)
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "own"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def repository(monkeypatch, tmp_path, golden):
    """Makes the folder of a repository in HF_HOME, with files as links to blobs."""
    stored = golden("timm/vit")
    folder = tmp_path / "hf" / "hub" / "models--me--my_vit"
    snapshot = folder / "snapshots" / COMMIT
    for path in (folder / "blobs", folder / "refs", snapshot):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    save_file(stored.arrays, folder / "blobs" / "abc")
    (folder / "blobs" / "def").write_text(json.dumps(stored.hints["config"]))
    os.symlink("../../blobs/abc", snapshot / "model.safetensors")
    os.symlink("../../blobs/def", snapshot / "config.json")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return folder


NAMES = ("abacus", "bagel", "canoe", "daisy", "easel")


@pytest.mark.parametrize(
    "source",
    ["", "@main", f"@{COMMIT}", "/model.safetensors", "@main/model.safetensors"],
)
def test_a_model_in_the_cache_is_read_without_the_network(source, repository, caplog):
    with caplog.at_level("INFO"):
        found = load_weights(f"hf:me/my_vit{source}").description
    # The class names come from the companion.
    assert found.class_names == NAMES
    assert f"read from Hugging Face's cache, {repository}" in caplog.text


@pytest.mark.parametrize(
    "below",
    [
        *("", "snapshots", f"snapshots/{COMMIT}", "blobs/abc"),
        f"snapshots/{COMMIT}/model.safetensors",
    ],
)
def test_a_path_into_the_cache(below, repository):
    assert load_weights(repository / below).description.class_names == NAMES


def test_a_copy_without_references(repository):
    (repository / "refs" / "main").unlink()
    assert load_weights("hf:me/my_vit").description.class_names == NAMES
    (repository / "snapshots" / "other").mkdir()
    with pytest.raises(AssertionError, match="asked the network"):
        load_weights("hf:me/my_vit")


@pytest.mark.parametrize(
    "source", ["hf:me/other", "hf:me/my_vit@v2", "hf:me/my_vit/a.bin"]
)
def test_other_models_are_asked_for(source, repository):
    with pytest.raises(AssertionError, match="asked the network"):
        load_weights(source)


def test_offline_the_cache_is_enough(repository, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_weights("hf:me/my_vit").description.class_names == NAMES
    with pytest.raises(UserError, match="downloads are disabled"):
        load_weights("hf:me/other")


def test_another_checksum_is_refused(repository):
    with pytest.raises(UserError, match="is not the file that"):
        load_weights(f"hf:me/my_vit#sha256={'0' * 64}")


def test_a_broken_link_is_not_a_file(repository):
    (repository / "blobs" / "abc").unlink()
    with pytest.raises(AssertionError, match="asked the network"):
        load_weights("hf:me/my_vit")


def test_a_model_without_its_companion_is_incomplete(repository):
    """Class names and preprocessing would silently be those that are usual."""
    (repository / "blobs" / "def").unlink()
    with pytest.raises(AssertionError, match="asked the network"):
        load_weights("hf:me/my_vit")
    snapshot = repository / "snapshots" / COMMIT
    with pytest.raises(UserError, match=r"incomplete: config\.json in it is a link to"):
        load_weights(snapshot)
    with pytest.raises(UserError, match=r"config\.json beside the weights is a link"):
        load_weights(snapshot / "model.safetensors")
    (repository / "blobs" / "abc").unlink()
    with pytest.raises(
        UserError, match=r"config\.json, model\.safetensors in it are links"
    ):
        load_weights(repository)


def test_a_folder_with_several_snapshots_is_ambiguous(repository):
    (repository / "refs" / "main").unlink()
    assert load_weights(repository).description.class_names == NAMES
    (repository / "snapshots" / "0a").mkdir()
    with pytest.raises(UserError) as error:
        load_weights(repository)
    assert f"holds 2 snapshots (0a, {COMMIT}), and refs/main names none" in str(
        error.value
    )
    (repository / "refs" / "main").write_text(COMMIT)
    assert load_weights(repository).description.class_names == NAMES


def test_shards_must_be_complete(repository):
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    index = {"weight_map": {"cls_token": "model-00001-of-00001.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AssertionError, match="asked the network"):
        load_weights("hf:me/my_vit")
    save_file({"cls_token": np.ones(3)}, snapshot / "model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match=r"whose names are not|cannot be determined"):
        load_weights("hf:me/my_vit")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_where_the_cache_lies(variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(hub_cache()) == expected
