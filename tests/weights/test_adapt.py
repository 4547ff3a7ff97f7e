import dataclasses
import logging

import jax
import numpy as np
import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture, abstract_params, build
from vit_jax.models.positions import METHODS, resize
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.adapt import (
    adapt,
    even_normalization,
    fold_normalization,
    heads_by_name,
)

SOURCE = Architecture(
    width=16,
    depth=2,
    mlp_dim=32,
    num_heads=2,
    patch_size=(4, 4),
    image_size=(8, 12),
    num_classes=3,
    pre_logits=8,
)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def params():
    images = np.zeros((1, *SOURCE.image_size, 3), np.float32)
    init = jax.jit(VisionTransformer(SOURCE).init)
    params = init(jax.random.key(0), images)["params"]
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (8, 3))
    return jax.tree.map(np.asarray, params)


def _adapt(params, target, **options):
    options = {"source_class_names": NAMES, "target_class_names": NAMES} | options
    return adapt(params, SOURCE, target, **options)


def _assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_nothing_changes_for_the_same_model(params, caplog):
    with caplog.at_level(logging.INFO):
        _assert_equal(_adapt(params, SOURCE), params)
    assert not caplog.messages


@pytest.mark.parametrize("method", ["bicubic", "google"])
def test_positions_are_resized_and_nothing_else_changes(params, method, caplog):
    target = dataclasses.replace(SOURCE, image_size=(20, 8))
    with caplog.at_level(logging.INFO):
        found = _adapt(params, target, posemb_resize=method)

    assert found["pos_embed"].shape == (1, 5, 2, 16)
    expected = params | {
        "pos_embed": np.asarray(resize(params["pos_embed"], (5, 2), method))
    }
    _assert_equal(found, expected)
    assert caplog.messages == [
        f"pretrained weights: position embeddings resized from 2×3 to 5×2 ({method})"
    ]


@pytest.mark.parametrize(
    ("fields", "options", "reason"),
    [
        ({"num_classes": 5}, {"target_class_names": ()}, "3 classes before, 5 now"),
        ({}, {"target_class_names": ("a", "c", "b")}, "3 classes as before, but with"),
        ({}, {"keep_head": False}, "a new head was requested"),
        ({"pre_logits": 0}, {}, "it read a different layer"),
    ],
)
def test_a_new_head_is_zero(params, fields, options, reason, caplog):
    target = dataclasses.replace(SOURCE, **fields)
    with caplog.at_level(logging.INFO):
        found = _adapt(params, target, head_bias=-10.0, **options)

    head = found.pop("head")
    inputs = target.pre_logits or target.width
    _assert_equal(head["kernel"], np.zeros((inputs, target.num_classes), np.float32))
    _assert_equal(head["bias"], np.full(target.num_classes, -10, np.float32))
    kept = {k: v for k, v in params.items() if k != "head"}
    if not target.pre_logits:
        del kept["pre_logits"]
        assert "pretrained weights: the tanh layer before the head dropped" in (
            caplog.messages
        )
    _assert_equal(found, kept)
    assert any(reason in line for line in caplog.messages)


@pytest.mark.parametrize(
    "names",
    [
        {"source_class_names": ()},
        {"target_class_names": ()},
        {"source_class_names": (), "target_class_names": ()},
    ],
)
def test_unknown_names_are_not_other_names(params, names):
    _assert_equal(_adapt(params, SOURCE, **names), params)


@pytest.mark.parametrize("wanted", [("c", "a", "b"), ("b",), ("c", "b")])
def test_outputs_are_matched_by_name(params, wanted, caplog):
    found, architecture, names = heads_by_name(params, SOURCE, NAMES, wanted)
    columns = [NAMES.index(name) for name in wanted]
    head = params["head"]
    _assert_equal(found["head"]["kernel"], head["kernel"][:, columns])
    _assert_equal(found["head"]["bias"], head["bias"][columns])
    assert architecture == dataclasses.replace(SOURCE, num_classes=len(wanted))
    assert names == wanted
    assert f"by name; {len(wanted)} of 3 are used" in caplog.text
    assert params["head"] is head


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (NAMES, NAMES),
        (NAMES, ()),
        ((), NAMES),
        (NAMES, ("a", "b", "d")),
        (("a", "a", "b"), ("b", "a")),
        (NAMES, ("a", "a")),
    ],
)
def test_outputs_that_cannot_be_matched_stay(params, names, wanted, caplog):
    found = heads_by_name(params, SOURCE, names, wanted)
    assert found == (params, SOURCE, names)
    assert not caplog.messages


def test_without_classes_the_head_is_removed(params, caplog):
    target = dataclasses.replace(SOURCE, num_classes=0)
    with caplog.at_level(logging.INFO):
        found = _adapt(params, target)
    _assert_equal(found, {k: v for k, v in params.items() if k != "head"})
    assert "the head removed" in caplog.text


def test_everything_that_does_not_match_is_listed_at_once(params):
    target = dataclasses.replace(SOURCE, depth=3, gelu="exact", registers=2)

    with pytest.raises(UserError) as error:
        _adapt(params, target)

    message = str(error.value)
    assert "depth: 2 in the weights, 3 in the model" in message
    assert "gelu: 'tanh' in the weights, 'exact' in the model" in message
    assert "registers: 0 in the weights, 2 in the model" in message
    # 16 parameters of a block, and the registers.
    assert "17 missing" in message
    assert "blocks_02/attention/key/bias" in message
    assert "leave model.variant empty" in message


def test_differing_fields_are_refused_even_if_all_shapes_match(params):
    target = dataclasses.replace(SOURCE, num_heads=4)

    with pytest.raises(UserError, match="num_heads: 2 in the weights, 4 in the model"):
        _adapt(params, target)


def test_a_tanh_layer_that_the_weights_lack_is_missing(params):
    source = dataclasses.replace(SOURCE, pre_logits=0)
    weights = {k: v for k, v in params.items() if k != "pre_logits"}

    with pytest.raises(UserError, match="missing: pre_logits/bias, pre_logits/kernel"):
        adapt(weights, source, SOURCE)


def test_weights_that_do_not_fit_their_architecture_are_refused(params):
    weights = params | {"norm": {"scale": np.ones(15), "bias": params["norm"]["bias"]}}

    with pytest.raises(UserError, match=r"1 different: norm/scale"):
        _adapt(weights, SOURCE)


# Changes of the input: channels, patch size, value range


def _logits(architecture, params, images):
    with jax.default_matmul_precision("highest"):
        return build(architecture).apply({"params": params}, images)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (2, *SOURCE.image_size, 3)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 6])
def test_equal_channels_give_the_same_logits_for_any_number(
    channels, params, images, caplog
):
    target = dataclasses.replace(SOURCE, channels=channels)
    with caplog.at_level(logging.INFO):
        found = _adapt(params, target)

    grey = images[..., :1]
    np.testing.assert_allclose(
        _logits(target, found, np.repeat(grey, channels, axis=-1)),
        _logits(SOURCE, params, np.repeat(grey, 3, axis=-1)),
        atol=1e-5,
    )
    assert f"changed to read {channels} channels instead of 3" in caplog.text


def test_more_channels_repeat_the_old_ones_in_turn(params):
    found = _adapt(params, dataclasses.replace(SOURCE, channels=4))
    kernel = params["patch_embed"]["kernel"]
    np.testing.assert_allclose(
        found["patch_embed"]["kernel"], kernel[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6
    )


def test_resized_patches_give_the_same_tokens_of_enlarged_images(
    params, images, caplog
):
    """Doubling is invertible, so tokens of doubled patches equal the old tokens."""
    target = dataclasses.replace(SOURCE, patch_size=(8, 8), image_size=(16, 24))
    with caplog.at_level(logging.INFO):
        found = _adapt(params, target)

    kernel = params["patch_embed"]["kernel"]
    patch = np.random.default_rng(1).normal(size=(4, 4, 3))
    enlarge = METHODS["bilinear"](4, 8)
    enlarged = np.einsum("yh,xw,hwc->yxc", enlarge, enlarge, patch)
    np.testing.assert_allclose(
        np.einsum("hwc,hwcd->d", enlarged, found["patch_embed"]["kernel"]),
        np.einsum("hwc,hwcd->d", patch, kernel),
        atol=1e-5,
    )
    np.testing.assert_array_equal(found["pos_embed"], params["pos_embed"])
    assert "resized from 4×4 to 8×8 pixels (pseudo-inverse)" in caplog.text


def test_a_new_patch_size_for_the_same_image_resizes_the_positions_too(params):
    target = dataclasses.replace(SOURCE, patch_size=(2, 4))
    found = _adapt(params, target)
    assert found["patch_embed"]["kernel"].shape == (2, 4, 3, 16)
    assert found["pos_embed"].shape == (1, 4, 3, 16)


def test_folding_the_normalisation_keeps_the_function(params, images):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    before = Preprocessing(SOURCE.image_size, mean=mean, std=std)
    folded, after = fold_normalization(params, SOURCE, before)

    pixels = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    assert after.mean == after.std == (0.5, 0.5, 0.5)
    np.testing.assert_allclose(
        _logits(SOURCE, folded, after.normalize(pixels)),
        _logits(SOURCE, params, before.normalize(pixels)),
        atol=1e-5,
    )
    hybrid = dataclasses.replace(SOURCE, trunk=(), patch_size=(4, 4))
    with pytest.raises(UserError, match="standardises its weights"):
        fold_normalization(params, hybrid, before)


def test_one_mean_for_all_channels_keeps_the_function(params, images):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    before = Preprocessing(SOURCE.image_size, mean=mean, std=std)
    evened, after = even_normalization(params, SOURCE, before)

    grey = np.random.default_rng(0).integers(0, 256, (*images.shape[:3], 1), np.uint8)
    alike = np.repeat(grey, 3, axis=-1)
    assert len(set(after.mean)) == len(set(after.std)) == 1
    expected = _logits(SOURCE, params, before.normalize(alike))
    found = _logits(SOURCE, evened, after.normalize(alike))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Likewise with a single channel.
    target = dataclasses.replace(SOURCE, channels=1)
    single = after.for_images(SOURCE.image_size, 1)
    found = _logits(target, _adapt(evened, target), single.normalize(grey))
    np.testing.assert_allclose(found, expected, atol=1e-5)

    # Nothing changes if the channels agree already, or with a trunk.
    same = Preprocessing(SOURCE.image_size)
    assert even_normalization(params, SOURCE, same) == (params, same)
    hybrid = dataclasses.replace(SOURCE, trunk=(), patch_size=(4, 4))
    assert even_normalization(params, hybrid, before) == (params, before)


def _random(architecture, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.1,
        abstract_params(architecture),
    )


def test_both_heads_of_a_distilled_model_are_replaced():
    source = dataclasses.replace(SOURCE, distillation_token=True, pre_logits=0)
    params = _random(source)
    found = adapt(params, source, dataclasses.replace(source, num_classes=5))
    for head in ("head", "head_distillation"):
        assert found[head]["kernel"].shape == (16, 5)
        assert not found[head]["kernel"].any()
    assert not found.keys() & {"pre_logits"}
    none = adapt(params, source, dataclasses.replace(source, num_classes=0))
    assert not none.keys() & {"head", "head_distillation"}


def test_channels_are_changed_in_the_trunk_if_there_is_one():
    source = dataclasses.replace(SOURCE, trunk=(), patch_size=(4, 4), pre_logits=0)
    params = _random(source)
    found = adapt(params, source, dataclasses.replace(source, channels=1))
    kernel = params["trunk"]["conv_root"]["kernel"]
    np.testing.assert_allclose(
        found["trunk"]["conv_root"]["kernel"], kernel.sum(2, keepdims=True), atol=1e-6
    )
    np.testing.assert_array_equal(
        found["patch_embed"]["kernel"], params["patch_embed"]["kernel"]
    )


def test_a_mixer_keeps_its_grid():
    source = MixerArchitecture(
        width=8,
        depth=1,
        tokens_mlp_dim=4,
        mlp_dim=16,
        patch_size=(4, 4),
        image_size=(8, 8),
        num_classes=3,
    )
    params = _random(source)
    found = adapt(params, source, dataclasses.replace(source, num_classes=2))
    assert found["head"]["kernel"].shape == (8, 2)
    larger = dataclasses.replace(source, patch_size=(8, 8), image_size=(16, 16))
    assert adapt(params, source, larger)["patch_embed"]["kernel"].shape[:2] == (8, 8)
    with pytest.raises(UserError) as error:
        adapt(params, source, dataclasses.replace(source, image_size=(16, 16)))
    assert "mixes a fixed number of patches: keep the grid" in str(error.value)
    assert "config" not in str(error.value)
    with pytest.raises(UserError, match="kind: 'MixerArchitecture' in the weights"):
        adapt(params, source, SOURCE)
