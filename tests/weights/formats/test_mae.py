"""Files of facebookresearch/mae: with a decoder, and fine-tuned ones."""

import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from vit_jax.errors import UserError
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import FORMATS
from vit_jax.weights.loading import load_weights

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
# What Meta's files do not record.
TOLD = {"num_heads": 4, "trained_image_size": (8, 12)}
RAW = TOLD | {"normalize_pixels": False}


@pytest.fixture(scope="module")
def arrays():
    with open_tensors(GOLDEN / "mae_meta.pth") as tensors:
        return {name: np.array(tensors.read(name)) for name in tensors.specs}


@pytest.fixture(scope="module")
def model():
    with jax.default_matmul_precision("highest"):
        return vit_jax.load(GOLDEN / "mae_meta.pth", **RAW)


@pytest.fixture
def saved(tmp_path):
    def save(arrays, name="weights.safetensors"):
        save_file(dict(arrays), tmp_path / name)
        return tmp_path / name

    return save


def test_losses_and_pixels_are_those_of_the_published_definition(model):
    with np.load(GOLDEN / "mae_meta.npz") as file:
        expected = dict(file)
    with jax.default_matmul_precision("highest"):
        found = model.reconstruct(expected["images"], noise=expected["noise"])
    np.testing.assert_allclose(found.loss.mean(), expected["loss"], rtol=1e-6)
    values = expected["predicted"].reshape(2, 2, 6, 4, 2, 3)
    pixels = values.transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 12, 3)
    np.testing.assert_allclose(found.pixels, pixels, rtol=0, atol=1e-5)


def test_what_shapes_and_numbers_show_is_read(model):
    facts = model.decoder.facts
    assert (facts.width, facts.depth, facts.mlp_dim) == (32, 1, 128)
    # The published number, and positions that are computed again bit for bit.
    assert (facts.num_heads, facts.posemb) == (16, "sincos2d")
    assert facts.normalize_pixels is False
    assert model.architecture.gelu == "exact"
    assert model.architecture.class_token_position
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)


def test_files_are_written_back_bit_for_bit(model, arrays, assert_same, tmp_path):
    vit_jax.save(model, tmp_path / "back.safetensors", "mae")
    assert_same(load_file(tmp_path / "back.safetensors"), arrays)


@pytest.mark.parametrize("changed", ["decoder_pos_embed", "pos_embed"])
def test_other_positions_are_kept(arrays, changed, saved, assert_same, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=arrays[changed].shape).astype(np.float32)
    # The last bit of one number makes a table another one.
    almost = arrays[changed].copy()
    almost[0, 1, 0] = np.nextafter(almost[0, 1, 0], 1, dtype=np.float32)
    for number, table in enumerate((noise, almost)):
        source = arrays | {changed: table}
        model = vit_jax.load(saved(source), **RAW)
        if changed == "decoder_pos_embed":
            assert model.decoder.facts.posemb == "learned"
        path = tmp_path / f"{number}.safetensors"
        vit_jax.save(model, path, "mae")
        assert_same(load_file(path), source)


def test_our_own_file_keeps_the_decoder(model, tmp_path, assert_same, arrays):
    vit_jax.save(model, tmp_path / "own.safetensors")
    loaded = vit_jax.load(tmp_path / "own.safetensors")
    assert loaded.decoder.facts == model.decoder.facts
    vit_jax.save(loaded, tmp_path / "back.safetensors", "mae")
    assert_same(load_file(tmp_path / "back.safetensors"), arrays)


def test_a_file_of_ours_with_a_damaged_decoder_is_refused(model, tmp_path):
    path = tmp_path / "own.safetensors"
    vit_jax.save(model, path)
    with open_tensors(path) as tensors:
        description = json.loads(tensors.metadata["vit_jax"])
    tensors = load_file(path)
    for changes, message in (
        ({"depth": 10_000}, "is of a model with 10,002 or more"),
        ({"mlp_dim": 10**7}, "is of a model with a tensor of 320,000,000"),
        ({"depth": 2}, r"missing: .*decoder/blocks_01"),
        ({"num_heads": 5}, "width 32 is not a multiple of num_heads 5"),
        ({"posemb": "none"}, "posemb is 'none', expected one of"),
        ({"more": 1}, "not a decoder: more missing or unknown"),
    ):
        decoder = description["decoder"] | changes
        text = json.dumps(description | {"decoder": decoder})
        save_file(tensors, path, {"vit_jax": text})
        with pytest.raises(UserError, match=message):
            load_weights(path)


def test_a_wrapper_and_the_trainers_entries_are_removed(arrays, saved, assert_same):
    wrapped = {f"module.{name}": x for name, x in arrays.items()}
    weights = load_weights(saved(wrapped), **RAW)
    plain = load_weights(GOLDEN / "mae_meta.pth", **RAW)
    assert weights.description.decoder == plain.description.decoder
    for found, expected in zip(
        *map(jax.tree.leaves, (weights.params, plain.params)), strict=True
    ):
        assert np.array_equal(found, expected)


def test_the_name_of_a_published_file_says_its_target(arrays, saved, caplog):
    for name, normalized, words in (
        ("mae_pretrain_vit_base_full.pth", True, "pixels normalised within each patch"),
        ("mae_visualize_vit_large_ganloss.pth", False, "pixels, by the name"),
    ):
        caplog.clear()
        weights = load_weights(saved(arrays, name), **TOLD)
        assert weights.description.decoder.normalize_pixels is normalized
        assert f"assumed that the decoder predicts {words}" in caplog.text
        assert "CC-BY-NC 4.0" in caplog.text


def test_an_unknown_target_is_asked_for(arrays, saved, caplog):
    model = vit_jax.load(saved(arrays), **TOLD)
    assert "nothing records what the decoder predicts: to reconstruct" in caplog.text
    images = np.zeros((1, 8, 12, 3), np.float32)
    with pytest.raises(UserError, match="load it with normalize_pixels=True"):
        model.reconstruct(images)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"decoder_heads": 3}, "width 32 is not a multiple of num_heads 3"),
        ({"decoder_heads": 8}, None),
        ({"normalize_pixels": True}, None),
    ],
)
def test_what_the_caller_says_counts(told, message):
    if message:
        with pytest.raises(UserError, match=message):
            load_weights(GOLDEN / "mae_meta.pth", **TOLD | told)
        return
    found = load_weights(GOLDEN / "mae_meta.pth", **TOLD | told).description.decoder
    expected = {"decoder_heads": "num_heads"}
    for name, value in told.items():
        assert getattr(found, expected.get(name, name)) == value


def test_the_caller_may_not_contradict_a_file(model, tmp_path):
    path = tmp_path / "own.safetensors"
    vit_jax.save(model, path)
    with pytest.raises(UserError) as caught:
        load_weights(path, normalize_pixels=True, decoder_heads=8)
    assert str(caught.value).splitlines() == [
        f"decoder_heads=8, but {path} records 16: omit it",
        f"normalize_pixels=True, but {path} records False: omit it",
    ]


def test_without_a_decoder_nothing_can_be_said_about_it(arrays, saved):
    alone = {n: x for n, x in arrays.items() if "decoder" not in n}
    with pytest.raises(UserError, match=r"decoder_heads=4, but .* has no decoder"):
        load_weights(saved(alone), **TOLD, decoder_heads=4)


def test_an_encoders_own_mask_token_is_not_a_decoders(arrays, saved, caplog):
    # DINOv2's and BEiT's belongs to the encoder.
    alone = {n: x for n, x in arrays.items() if "decoder" not in n}
    alone["mask_token"] = np.ones((1, 1, 16), np.float32)
    weights = load_weights(saved(alone), **TOLD)
    assert weights.description.decoder is None
    assert "left out 1 of" in caplog.text and "mask_token" in caplog.text
    mixed = arrays | {"mask_token": np.ones((1, 1, 48), np.float32)}
    with pytest.raises(UserError, match=r"of another shape: mask_token \(expected"):
        load_weights(saved(mixed), **RAW)


def test_incomplete_files_are_refused(arrays, saved):
    missing = {n: x for n, x in arrays.items() if n != "decoder_norm.bias"}
    with pytest.raises(UserError, match=r"1 missing: decoder_norm\.bias"):
        load_weights(saved(missing), **RAW)
    decoder = {n: x for n, x in arrays.items() if n.startswith(("decoder", "mask"))}
    message = "the decoder of a masked autoencoder without its encoder"
    with pytest.raises(UserError, match=message):
        load_weights(saved(decoder))


def test_an_unusual_width_needs_the_number_of_heads(arrays, saved):
    # Half of the encoder's width, whose decoder has no multiple of 16 channels.
    narrow = {n: x for n, x in arrays.items() if not n.startswith("decoder_blocks")}
    narrow["decoder_embed.weight"] = np.ones((24, 32), np.float32)
    narrow["decoder_blocks.0.mlp.fc1.weight"] = np.ones((8, 24), np.float32)
    with pytest.raises(UserError, match=r"width 24 is not .* 16, .*: pass decoder_he"):
        load_weights(saved(narrow), **RAW)


def test_other_formats_leave_the_decoder_out(model, arrays, tmp_path, caplog):
    vit_jax.save(model, tmp_path / "encoder.safetensors", "timm")
    assert "timm's format has no place for the decoder" in caplog.text
    names = load_file(tmp_path / "encoder.safetensors").keys()
    assert names == {n for n in arrays if "decoder" not in n and n != "mask_token"}
    assert vit_jax.load(tmp_path / "encoder.safetensors").decoder is None


def test_the_format_is_for_models_with_a_decoder(model, tmp_path):
    vit_jax.save(model, tmp_path / "encoder.safetensors", "timm")
    alone = vit_jax.load(tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="is for models with a decoder, and this one"):
        vit_jax.save(alone, tmp_path / "x.safetensors", "mae")


def test_what_the_format_does_not_record_is_said(model, tmp_path, caplog):
    vit_jax.save(model, tmp_path / "back.safetensors", "mae")
    lost = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(lost) == 2
    assert "number of attention heads, 4: load it with num_heads=4" in lost[0]
    assert "predicts pixels: load it with normalize_pixels=False" in lost[1]


def test_a_decoder_is_adapted_or_left_out(arrays, saved, caplog):
    table = np.random.default_rng(0).normal(size=(1, 13, 32)).astype(np.float32)
    source = saved(arrays | {"decoder_pos_embed": table})
    larger = vit_jax.load(source, **RAW, image_size=(12, 12))
    assert larger.decoder.params["pos_embed"].shape == (1, 3, 6, 32)
    assert larger.decoder.params["pos_embed_prefix"].shape == (1, 1, 32)
    for changes in ({"patch_size": (2, 2)}, {"channels": 1}, {"fold": True}):
        caplog.clear()
        fold = changes.pop("fold", False)
        changed = vit_jax.load(source, **RAW, **changes, fold_normalization=fold)
        assert changed.decoder is None
        assert "the decoder was left out, because it predicts patches" in caplog.text


def test_fine_tuned_files_have_their_norm_after_pooling(arrays, saved, tmp_path):
    tuned = {n: x for n, x in arrays.items() if "decoder" not in n and n[:4] != "mask"}
    tuned |= {
        f"fc_norm.{leaf}": tuned.pop(f"norm.{leaf}") for leaf in ("weight", "bias")
    }
    tuned |= {"head.weight": np.ones((5, 32), np.float32), "head.bias": np.ones(5, "f")}
    model = vit_jax.load(saved(tuned), **TOLD)
    a = model.architecture
    assert (a.pooling, a.norm, a.class_token, a.num_classes) == (
        *("gap", "after_pool", True, 5),
    )
    vit_jax.save(model, tmp_path / "back.safetensors", "timm")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tuned.keys()
    assert all(np.array_equal(back[name], tuned[name]) for name in tuned)


def test_the_format_says_what_it_cannot_hold(model):
    a = dataclasses.replace(model.architecture, norm="after_pool", layer_scale=True)
    expected = ["LayerScale", "the norm after pooling"]
    assert FORMATS["mae"].inexpressible(a) == expected
