"""Boxes of models: which attention, at which size, on which pixels."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax.errors import UserError
from vit_jax.inspect import cropping
from vit_jax.inspect.boxes import attention_box, tokencut_box
from vit_jax.inspect.cropping import ASPECTS, METHODS, Cropper, nearest_grid
from vit_jax.models import MixerArchitecture

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
SIZE = {"image_size": (16, 16)}
NO_TOKEN = {"class_token": False, "class_token_position": False}


def _rows(model, pixels):
    """Returns the attention of the last layer for an image of the model's size."""
    images = model.preprocessing.normalize(jnp.asarray(pixels)[None])
    return np.asarray(model.attention(images, layers=(-1,)))[0, 0]


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, lambda w: w[:, 0, 1:]),
        ({"registers": 3}, lambda w: w[:, 0, 4:]),
        (
            {"distillation_token": True, "distillation_head": True},
            lambda w: w[:, :2, 2:].mean(1),
        ),
        ({"pooling": "gap", **NO_TOKEN}, lambda w: w.mean(1)),
        ({"pooling": "gap", "registers": 2}, lambda w: w[:, 3:, 3:].mean(1)),
        ({"pooling": "cls_gap"}, lambda w: (w[:, 0, 1:] + w[:, 1:, 1:].mean(1)) / 2),
        ({"prompts": 2}, lambda w: w[:, 0, 1:]),
        ({"trunk": (), "patch_size": (4, 4)}, lambda w: w[:, 0, 1:]),
        ({"posemb": "sincos2d"}, lambda w: w[:, 0, 1:]),
    ],
    ids=lambda value: "-".join(value) or "cls" if isinstance(value, dict) else "",
)
def test_the_map_is_what_the_pooled_tokens_read(fields, rows, make_teacher):
    model = vit_jax.load(make_teacher(**SIZE, **fields))
    found = Cropper(model)(PIXELS)
    expected = rows(_rows(model, PIXELS)).mean(0)
    expected = expected / expected.sum()
    np.testing.assert_allclose(found.map.ravel(), expected, rtol=1e-5)
    assert found.box == attention_box(expected.reshape(4, 4), (16, 16)).box


def test_the_map_of_a_map_head_is_its_own(make_teacher):
    model = vit_jax.load(make_teacher(**SIZE, pooling="map", **NO_TOKEN))
    images = model.preprocessing.normalize(jnp.asarray(PIXELS)[None])
    _, found = model.module.apply(
        {"params": model.params}, images, intermediates=("map_attention",)
    )
    expected = found["map_attention"][0].mean(0).reshape(4, 4)
    np.testing.assert_allclose(Cropper(model)(PIXELS).map, expected, rtol=1e-5)


def test_keys_are_those_that_attention_reads(make_teacher):
    model = vit_jax.load(make_teacher(**SIZE, depth=2, registers=1))
    read = []

    def draw(keys, image_size, **keywords):
        read.append(keys)
        return tokencut_box(keys, image_size, **keywords, centred=True)

    cropper = Cropper(model, "tokencut", padding=0)
    cropper.method = cropper.method._replace(draw=draw)
    found = cropper(PIXELS)
    (keys,) = read
    assert keys.shape == (4, 4, 16)
    images = model.preprocessing.normalize(jnp.asarray(PIXELS)[None])
    _, arrays = model.module.apply(
        {"params": model.params}, images, intermediates=("queries",)
    )
    queries = np.asarray(arrays["queries"])[0, -1, 0].reshape(2, 8)
    logits = np.einsum("hd,nhd->hn", queries, keys.reshape(16, 2, 8)) / np.sqrt(8)
    # Softmax over the patches alone, as the rows are renormalised.
    expected = _rows(model, PIXELS)[:, 0, 2:]
    np.testing.assert_allclose(
        jax.nn.softmax(logits, axis=-1), expected / expected.sum(1)[:, None], rtol=1e-4
    )
    assert found == Cropper(model, "tokencut_centred", padding=0)(PIXELS)._replace(
        map=found.map, region=found.region
    )


def test_a_rectangle_is_read_like_a_model_loaded_for_it(make_teacher):
    path = make_teacher(**SIZE)
    pixels = np.random.default_rng(1).integers(0, 256, (12, 20, 3), np.uint8)
    assert nearest_grid((12, 20), 16, (4, 4)) == (3, 5)
    found = Cropper(vit_jax.load(path))(pixels)
    loaded = vit_jax.load(path, image_size=(12, 20))
    expected = _rows(loaded, pixels)[:, 0, 1:].mean(0).reshape(3, 5)
    np.testing.assert_allclose(found.map, expected / expected.sum(), rtol=1e-4)


def test_more_patches_can_be_asked_for(make_teacher):
    path = make_teacher(**SIZE)
    model = vit_jax.load(path)
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    assert Cropper(model)(pixels).map.shape == (4, 4)
    found = Cropper(model, image_size=27)(pixels)
    loaded = vit_jax.load(path, image_size=24)
    expected = _rows(loaded, pixels)[:, 0, 1:].mean(0).reshape(6, 6)
    np.testing.assert_allclose(found.map, expected / expected.sum(), rtol=1e-4)


def test_flexible_models_have_positions_for_any_grid(make_teacher):
    fields = {"flexible_kernel": (8, 8), "flexible_grid": (3, 3)}
    model = vit_jax.load(make_teacher(**SIZE, **fields, flexible_resize="linear"))
    assert Cropper(model)(PIXELS[:8]).map.shape == (3, 5)


def test_grids_are_nearest_to_the_image_and_hold_no_more_patches():
    assert nearest_grid((500, 500), 37 * 37) == (37, 37)
    assert nearest_grid((400, 600), 37 * 37) == (30, 45)
    assert nearest_grid((600, 400), 37 * 37) == (45, 30)
    assert nearest_grid((300, 400), 196) == (12, 16)
    assert nearest_grid((10, 9000), 196) == (7, 28)
    # Patches of twice the height: half as many rows.
    assert nearest_grid((500, 500), 200, (8, 4)) == (10, 20)
    for most in (196, 256, 576, 37 * 37):
        grids, squashed = set(), []
        for width in range(500, 2001):
            gh, gw = nearest_grid((1000, width), most)
            assert 0.9 * most < gh * gw <= most
            squashed.append(abs(np.log(width / 1000 / (gw / gh))))
            grids.add((gh, gw))
        assert max(squashed) < np.log(7 / 6)
        assert len(grids) < 2 * len(ASPECTS)
    for patches in (1, 2, 3, 5):
        for size in ((9, 1), (1, 9), (3, 3)):
            gh, gw = nearest_grid(size, patches)
            assert 1 <= gh * gw <= patches


@pytest.fixture
def brightness(monkeypatch):
    """Makes boxes be drawn by the brightness of patches of the model's input."""

    def read(module, params, images, grid):
        (patch_height, patch_width) = module.architecture.patch_size
        shape = (grid[0], patch_height, grid[1], patch_width, 3)
        return ((images + 1) / 2).reshape(shape).mean((1, 3, 4))

    changed = METHODS["attention"]._replace(read=read)
    monkeypatch.setitem(cropping.METHODS, "attention", changed)


def test_boxes_are_in_pixels_of_the_upright_image(brightness, make_teacher):
    model = vit_jax.load(make_teacher(image_size=(32, 32)))
    upright = np.zeros((53, 31, 3), np.uint8)
    upright[22:31, 6:15] = 255
    cropper = Cropper(model, mass=0.9, padding=0)
    # Rows of 5.3 pixels, of which 4 and 5 are bright: pixels 21.2…31.8. Columns of
    # 5.17 pixels, of which 1 and 2 are bright: 5.17…15.5.
    found = cropper(upright)
    assert found.map.shape == (10, 6)
    assert found.box == (5, 21, 16, 32)

    # As a camera stores it that was held on its side: to be turned by 90° clockwise.
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    assert turned.size == (53, 31)
    turned.save(stored, "JPEG", exif=exif, quality=100, subsampling=0)
    (crop,) = cropper.stream(stored.getvalue())
    assert crop.error is None and crop.pixels.shape == (53, 31, 3)
    assert np.abs(crop.pixels.astype(int) - upright).max() < 40
    assert crop.found.box == (5, 21, 16, 32)


def test_the_whole_image_is_read_whatever_the_evaluation_crops(
    brightness, make_teacher
):
    chain = {"eval_transform": "resize_small(64)|central_crop"}
    path = make_teacher(image_size=(32, 32), preprocessing=chain)
    pixels = np.zeros((320, 320, 3), np.uint8)
    pixels[:20, 300:] = 255  # in a corner
    cropper = Cropper(vit_jax.load(path), mass=0.5, padding=0)
    assert cropper(pixels).box == (280, 0, 320, 40)


def test_a_bad_image_costs_its_own_box(make_teacher):
    cropper = Cropper(vit_jax.load(make_teacher(**SIZE)))
    png = io.BytesIO()
    Image.fromarray(PIXELS).save(png, "PNG")
    bad = png.getvalue()[:60]
    crops = list(cropper.stream([bad, PIXELS, bad, png.getvalue(), bad]))
    assert [crop.name for crop in crops] == [f"image {n}" for n in range(5)]
    assert [crop.error is None for crop in crops] == [False, True, False, True, False]
    assert crops[1].found.box == crops[3].found.box == cropper(PIXELS).box
    np.testing.assert_array_equal(crops[3].pixels, PIXELS)
    assert "image 2 cannot be decoded" in str(crops[2].error)
    assert crops[2].pixels is None and crops[2].found is None


def test_an_image_without_a_cut_is_named(make_teacher):
    model = vit_jax.load(make_teacher(**SIZE))
    grey = np.full((16, 16, 3), 128, np.uint8)
    kernel = model.params["pos_embed"]
    model.params["pos_embed"] = jnp.zeros_like(kernel)  # so that all keys are equal
    (crop,) = Cropper(model, "tokencut").stream(grey)
    assert re.match("image 0: there is no cut: all pairs", str(crop.error))
    assert crop.found is None and crop.pixels is not None


def test_diverged_weights_are_no_map(make_teacher):
    model = vit_jax.load(make_teacher(**SIZE))
    model.params = jax.tree.map(lambda x: x * jnp.nan, model.params)
    with pytest.raises(UserError, match="damaged or diverged"):
        Cropper(model)(PIXELS)
    with pytest.raises(UserError, match="keys are not finite"):
        Cropper(model, "tokencut")(PIXELS)


def test_what_cannot_be_is_said_at_once(make_teacher):
    model = vit_jax.load(make_teacher(**SIZE))
    for match, keywords in {
        "method='lost': choose 'attention', ": {"method": "lost"},
        "mass=2": {"mass": 2},
        "aspect=-1": {"aspect": -1},
        "image_size=3: expected at least 4 pixels": {"image_size": 3},
    }.items():
        with pytest.raises(UserError, match=match):
            Cropper(model, **keywords)
    mixer = MixerArchitecture(
        width=16,
        depth=1,
        tokens_mlp_dim=8,
        mlp_dim=32,
        patch_size=(4, 4),
        num_classes=3,
        **SIZE,
    )
    model = vit_jax.load(make_teacher("mixer", architecture=mixer, class_names=()))
    with pytest.raises(UserError, match="an MLP-Mixer, which has neither attention"):
        Cropper(model)
