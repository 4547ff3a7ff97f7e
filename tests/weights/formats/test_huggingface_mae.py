"""Hugging Face's masked autoencoders, with their decoders."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from vit_jax.errors import UserError
from vit_jax.weights.loading import load_weights

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "mae_huggingface.npz"
# What files without a config.json do not record.
TOLD = {"num_heads": 2, "decoder_heads": 3}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def published(golden):
    """The arrays under the names of the published files, which version 4 wrote."""
    return {
        name.removeprefix("file/").replace("decoder_encoder.layer", "decoder_layers"): x
        for name, x in golden.items()
        if name.startswith("file/")
    }


@pytest.fixture
def folder(golden, tmp_path):
    """Returns a function that writes arrays and changes of the config."""

    def write(arrays, **changes):
        path = tmp_path / "source"
        path.mkdir(exist_ok=True)
        save_file(arrays, path / "model.safetensors")
        config = json.loads(str(golden["config"])) | changes
        (path / "config.json").write_text(json.dumps(config))
        return path

    return write


@pytest.mark.parametrize("kind", ["pixels", "normalized"])
def test_losses_and_pixels_are_those_of_the_library(golden, published, folder, kind):
    normalized = kind == "normalized"
    images = golden["images"]
    with jax.default_matmul_precision("highest"):
        model = vit_jax.load(folder(published, norm_pix_loss=normalized))
        found = model.reconstruct(images, noise=golden["noise"])
    assert model.decoder.facts.normalize_pixels is normalized
    np.testing.assert_allclose(found.loss.mean(), golden[f"{kind}/loss"], rtol=2e-6)
    # Patches on their grid; their values row by row.
    predicted = golden["logits"].reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    if normalized:
        true = images.reshape(3, 4, 4, 4, 4, 3)
        mean = true.mean(axis=(2, 4, 5), keepdims=True)
        variance = true.var(axis=(2, 4, 5), keepdims=True, ddof=1)
        predicted = predicted * np.sqrt(variance + 1e-6) + mean
    pixels = predicted.reshape(images.shape)
    np.testing.assert_allclose(found.pixels, pixels, rtol=0, atol=1e-5)
    mask = golden["mask"].astype(bool)
    assert np.array_equal(found.mask, mask.reshape(3, 4, 4))
    hidden = np.repeat(np.repeat(found.mask, 4, axis=1), 4, axis=2)[..., None]
    assert np.array_equal(found.masked, np.where(hidden, 0, images))
    assert np.array_equal(found.combined, np.where(hidden, found.pixels, images))


@pytest.mark.parametrize("names", ["version 4", "version 5", "memory"])
def test_every_generation_of_names_is_written_back(
    golden, published, folder, names, assert_same, tmp_path
):
    files = {n.removeprefix("file/"): x for n, x in golden.items() if n[:5] == "file/"}
    if names == "version 4":
        files = published
    elif names == "memory":
        ours = map(str, golden["memory"])
        files = dict(zip(ours, (files[n] for n in sorted(files)), strict=True))
        assert "decoder.decoder_layers.0.attention.q_proj.weight" in files
        assert "vit.layers.1.mlp.fc2.bias" in files
    model = vit_jax.load(folder(files))
    facts = model.decoder.facts
    assert (facts.width, facts.depth, facts.mlp_dim, facts.num_heads) == (12, 1, 40, 3)
    assert facts.posemb == "learned"  # its positions are random
    vit_jax.save(model, tmp_path / "back", "huggingface")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), published)
    # The config says everything again.
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    told = json.loads(str(golden["config"]))
    for name in told.keys() - {"initializer_range", "transformers_version", "dtype"}:
        assert back[name] == told[name], name


def test_without_a_config_the_target_is_unknown(published, tmp_path, caplog):
    path = tmp_path / "pytorch_model.safetensors"
    save_file(published, path)
    decoder = load_weights(path, **TOLD).description.decoder
    assert decoder.normalize_pixels is None
    assert "nothing records what the decoder predicts" in caplog.text
    # Those of the released models.
    assert "assumed mean (0.485, 0.456, 0.406)" in caplog.text


def test_the_librarys_defaults_count(published, folder, caplog):
    config = {"norm_pix_loss": None, "decoder_num_attention_heads": None}
    decoder = load_weights(folder(published, **config), decoder_heads=2)
    decoder = decoder.description.decoder
    assert decoder.normalize_pixels is False
    assert decoder.num_heads == 2
    with pytest.raises(UserError, match="decoder_heads says 16 attention heads, but"):
        load_weights(folder(published, **config))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder_hidden_size", 16, "decoder_hidden_size is 16 there but 12 in the"),
        ("decoder_num_hidden_layers", 2, "decoder_num_hidden_layers is 2 there but 1"),
        ("decoder_intermediate_size", 8, "decoder_intermediate_size is 8 there but 40"),
        ("decoder_num_attention_heads", 5, "decoder_heads says 5 .* width 12"),
        ("norm_pix_loss", "yes", "norm_pix_loss is 'yes', expected true or false"),
    ],
)
def test_a_config_of_another_decoder_is_refused(
    published, folder, name, value, message
):
    with pytest.raises(UserError, match=message):
        load_weights(folder(published, **{name: value}))


def test_the_caller_may_not_contradict_the_config(published, folder):
    with pytest.raises(UserError, match=r"decoder_heads=4, but .* records 3: omit"):
        load_weights(folder(published), decoder_heads=4)


def test_a_missing_tensor_of_the_decoder_is_named(published, folder):
    name = "decoder.decoder_layers.0.layernorm_after.bias"
    rest = {n: x for n, x in published.items() if n != name}
    with pytest.raises(UserError, match=f"1 missing: {name}"):
        load_weights(folder(rest))


def test_the_encoder_alone_is_read_as_before(published, folder, caplog):
    encoder = {n: x for n, x in published.items() if n.startswith("vit.")}
    weights = load_weights(folder(encoder))
    assert weights.description.decoder is None
    assert weights.description.architecture.num_classes == 0
