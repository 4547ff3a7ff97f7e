"""timm's format: models that timm wrote, against the logits that timm computes."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture
from vit_jax.weights.adapt import adapt
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors
from vit_jax.weights.formats.layout import Hints, flatten, unflatten
from vit_jax.weights.formats.timm import FORMAT, companions
from vit_jax.weights.formats.timm_config import TimmConfig

GAP = {"pooling": "gap"}
NO_TOKEN = {"class_token": False, "class_token_position": False}
NO_POSITION = {"class_token_position": False}
# A model that timm wrote → fields of its architecture that differ from `tiny`.
MODELS = {
    "vit": {},
    "no_embed_class": NO_POSITION,
    "registers": {"registers": 2, "register_positions": True},
    "registers_no_embed_class": {"registers": 2, **NO_POSITION},
    "registers_gap": {
        "registers": 2,
        "register_positions": True,
        "norm": "after_pool",
        **GAP,
        **NO_TOKEN,
    },
    "gap_fc_norm": {"norm": "after_pool", **GAP},
    "gap_norm_before": GAP,
    "gap_no_class_token": {**GAP, **NO_TOKEN},
    "map": {"pooling": "map", **NO_TOKEN},
    "deit": {},
    "deit_distilled": {"distillation_token": True},
    "deit3": {"layer_scale": True, **NO_POSITION},
    "no_head": {"num_classes": 0},
    "gelu_tanh_grey": {"gelu": "tanh", "channels": 1},
    "rectangular": {"patch_size": (4, 8), "image_size": (8, 24)},
    "no_qkv_bias": {"qkv_bias": False},
    "hybrid_root": {
        "trunk": (),
        "trunk_numerics": "timm",
        "patch_size": (16, 16),
        "image_size": (32, 32),
    },
    "hybrid_seeded": {
        "trunk": (2, 1),
        "trunk_numerics": "timm",
        "patch_size": (16, 16),
        "image_size": (32, 32),
    },
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny(**changes):
    sizes = {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 4}
    inputs = {"patch_size": (4, 4), "image_size": (16, 16)}
    exact = {"gelu": "exact", "num_classes": 5}
    return Architecture(**{**sizes, **inputs, **exact, **changes})


def shapes_with(**names):
    """Makes the shapes of a plain model of width 16 and depth 1, with changes."""
    shapes = {
        "cls_token": (1, 1, 16),
        "pos_embed": (1, 17, 16),
        "patch_embed.proj.weight": (16, 3, 4, 4),
        "blocks.0.attn.qkv.weight": (48, 16),
        "blocks.0.attn.qkv.bias": (48,),
        "blocks.0.mlp.fc1.weight": (32, 16),
        "blocks.0.mlp.fc2.weight": (16, 32),
        "norm.weight": (16,),
    }
    shapes |= {name.replace("__", "."): shape for name, shape in names.items()}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def described(config=None, shapes=None, **hints):
    hints = {"num_heads": 4, **hints}
    return FORMAT.read(shapes or shapes_with(), Hints(config=config or {}, **hints))


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_round_trip(name, golden, read, write, model_logits, assert_same):
    stored = golden(f"timm/{name}")
    found, params = read(FORMAT, stored.arrays, **stored.hints)
    assert found.architecture == tiny(**MODELS[name])
    images, expected = stored.reference["images"], stored.reference["logits"]
    assert np.abs(expected).max() > 0.1
    logits = model_logits(found.architecture, params, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)

    back = write(FORMAT, found.architecture, params)
    assert_same(back, stored.arrays)
    written = companions(found.architecture, found.preprocessing, found.class_names)
    again, params_again = read(FORMAT, back, config=written["config.json"])
    assert again._replace(assumed=()) == found._replace(assumed=())
    assert not again.assumed
    assert_same(params_again, params)


@pytest.mark.parametrize("name", [name for name in MODELS if "seeded" not in name])
def test_our_config_equals_that_of_timm(name, golden, read):
    stored = golden(f"timm/{name}")
    found, _ = read(FORMAT, stored.arrays, **stored.hints)
    theirs = stored.hints["config"]
    ours = companions(found.architecture, found.preprocessing, found.class_names)
    ours = ours["config.json"]
    for table in ("model_args", "pretrained_cfg"):
        # We write neither tag nor license; any initial value of LayerScale will do.
        wanted = {k: v for k, v in theirs[table].items() if k not in ("tag", "license")}
        wanted.pop("init_values", None)
        if table == "model_args":
            # Given there too, it makes transformers' wrapper of timm's models fail.
            assert wanted.pop("num_classes") == ours["num_classes"]
            assert "num_classes" not in ours["model_args"]
        assert {key: ours[table].get(key, "missing") for key in wanted} == wanted
    assert ours.get("label_names") == theirs.get("label_names")
    assert ours["num_features"] == theirs["num_features"]
    assert ("init_values" in ours["model_args"]) == found.architecture.layer_scale


def test_positions_resized_as_timm_does(golden, read, model_logits):
    stored = golden("timm/vit")
    found, params = read(FORMAT, stored.arrays, **stored.hints)
    images = stored.resized["images"]
    target = tiny(image_size=images.shape[1:3])
    assert target.grid == (3, 6)
    resized = adapt(
        unflatten(params),
        found.architecture,
        target,
        source_class_names=found.class_names,
        target_class_names=found.class_names,
        posemb_resize=found.posemb_resize,
    )
    logits = model_logits(target, flatten(resized), images)
    np.testing.assert_allclose(logits, stored.resized["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.module.", "encoder."]
)
def test_prefixes_of_the_model_are_removed(prefix, golden, read, assert_same, tmp_path):
    stored = golden("timm/vit")
    _, params = read(FORMAT, stored.arrays, **stored.hints)
    wrapped = {f"{prefix}{name}": array for name, array in stored.arrays.items()}
    outside = {"optimizer.step": np.zeros(1, np.float32)}
    found, same = read(FORMAT, wrapped | outside, **stored.hints)
    assert found.architecture == tiny()
    assert_same(same, params)
    # Tensors that are left out are reported.
    np.savez(tmp_path / "a.npz", **wrapped, **outside)
    with open_tensors(tmp_path / "a.npz") as tensors:
        found, _ = read_tensors(tensors, Hints(**stored.hints))
    assert found.assumed[-1] == (
        f"left out 1 of {len(wrapped) + 1} tensors, which are not part of the model: "
        "optimizer.step"
    )


def test_facebooks_names(golden, read, assert_same):
    stored = golden("timm/deit3")
    _, params = read(FORMAT, stored.arrays, **stored.hints)
    theirs = {
        re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): array
        for name, array in stored.arrays.items()
    }
    assert "blocks.1.gamma_2" in theirs
    found, same = read(FORMAT, theirs, num_heads=4)
    assert found.architecture == tiny(**MODELS["deit3"])
    assert_same(same, params)


def test_registers_without_positions_beside_a_class_token_with_one(golden, read):
    arrays = dict(golden("timm/vit").arrays)
    arrays["register_tokens"] = np.ones((1, 4, 16), np.float32)
    arrays["mask_token"] = np.ones((1, 16), np.float32)
    arrays["decoder_embed.weight"] = np.ones((8, 16), np.float32)
    found, params = read(FORMAT, arrays, num_heads=4)
    assert found.architecture == tiny(registers=4)
    assert params["registers"].shape == (1, 4, 16)
    assert "register" in "; ".join(FORMAT.inexpressible(found.architecture))


@pytest.mark.parametrize(
    ("positions", "hints", "config", "grid", "with_positions"),
    [
        # No published model gives registers positions, so none of the nine is theirs.
        (9, {}, {}, (3, 3), (False, False)),
        (10, {}, {}, (3, 3), (True, False)),
        (14, {}, {}, (3, 3), (True, True)),
        (9, {"trained_image_size": (8, 8)}, {}, (2, 2), (True, True)),
        (9, {"image_size": (8, 8)}, {}, (2, 2), (True, True)),
        (9, {"image_size": (8, 8)}, {"img_size": 12}, (3, 3), (False, False)),
        (9, {}, {"no_embed_class": False}, (2, 2), (True, True)),
        (9, {}, {"no_embed_class": True}, (3, 3), (False, False)),
    ],
)
def test_positions_of_small_grids_beside_registers(
    positions, hints, config, grid, with_positions
):
    shapes = shapes_with(reg_token=(1, 4, 16), pos_embed=(1, positions, 16))
    found = described({"model_args": config}, shapes, **hints)
    a = found.architecture
    assert a.grid == grid
    assert (a.class_token_position, a.register_positions) == with_positions
    notes = [s for s in found.assumed if "trained_image_size=(height, width)" in s]
    # Only nine positions are ambiguous, unless the config or the caller decides.
    assert len(notes) == (
        positions == 9
        and "trained_image_size" not in hints
        and "img_size" not in config
        and config.get("no_embed_class") is not True
    )
    if notes and grid == (3, 3):
        assert "3×3 patches or 2×2 patches after 5 other tokens" in notes[0]


def test_a_tanh_layer_of_old_files_is_read_and_not_written(golden, read, model_logits):
    stored = golden("timm/vit")
    rng = np.random.default_rng(0)
    layer = {
        "pre_logits.fc.weight": rng.normal(size=(7, 16)).astype(np.float32),
        "pre_logits.fc.bias": rng.normal(size=7).astype(np.float32),
        "head.weight": rng.normal(size=(5, 7)).astype(np.float32),
    }
    found, params = read(FORMAT, stored.arrays | layer, num_heads=4)
    assert found.architecture == tiny(pre_logits=7)
    np.testing.assert_array_equal(
        params["pre_logits/kernel"], layer["pre_logits.fc.weight"].T
    )
    assert "tanh" in FORMAT.inexpressible(found.architecture)[0]


@pytest.mark.parametrize(
    ("size", "config", "heads", "assumed"),
    [
        ((16, 1, 32), {"model_args": {"num_heads": 2}}, 2, False),
        ((192, 1, 768), {"architecture": "vit_tiny_patch16_224.augreg"}, 3, False),
        ((1280, 1, 5120), {"architecture": "vit_huge_patch14_224"}, 16, False),
        ((1280, 32, 5120), {}, 16, True),
        ((128, 1, 512), {}, 2, True),
    ],
)
def test_heads_come_from_the_config_or_are_assumed(size, config, heads, assumed):
    width, depth, hidden = size
    shapes = shapes_with(
        cls_token=(1, 1, width),
        pos_embed=(1, 17, width),
        patch_embed__proj__weight=(width, 3, 4, 4),
    )
    for i in range(depth):
        shapes |= {f"blocks.{i}.mlp.fc1.weight": (hidden, width)}
    found = FORMAT.read(shapes, Hints(config=config))
    assert found.architecture.num_heads == heads
    sentences = [s for s in found.assumed if "attention heads" in s]
    assert len(sentences) == assumed
    assert all(f"assumed {heads} attention heads" in s for s in sentences)
    passed = FORMAT.read(shapes, Hints(config=config, num_heads=8))
    assert passed.architecture.num_heads == 8


def test_heads_must_be_known_and_divide_the_width():
    with pytest.raises(UserError, match="pass num_heads=") as error:
        described(num_heads=None)
    assert "width 16 is not a multiple of 64" in str(error.value)
    with pytest.raises(
        UserError, match="num_heads= says 3 attention heads, but the wid"
    ):
        described(num_heads=3)
    with pytest.raises(UserError, match="companion file says 5 attention heads"):
        described({"model_args": {"num_heads": 5}}, num_heads=None)


def test_the_pooling_comes_from_the_config_or_is_assumed():
    assert described({"global_pool": "avg"}).architecture.pooling == "gap"
    given = described({"global_pool": "token"})
    assert (given.architecture.pooling, len(given.assumed)) == ("cls", 1)
    guessed = described()
    assert guessed.architecture.pooling == "cls"
    assert any("reads the class token" in sentence for sentence in guessed.assumed)
    normed = shapes_with(norm__weight=None, fc_norm__weight=(16,))
    assert described(shapes=normed).architecture.pooling == "gap"
    by_token = described({"global_pool": "token"}, normed).architecture
    assert (by_token.pooling, by_token.norm) == ("cls", "after_pool")


def test_a_grid_that_is_not_square(golden, read):
    stored = golden("timm/rectangular")
    # 2 × 3 patches and the class token.
    with pytest.raises(UserError, match=r"6 positions .* pass the image size"):
        read(FORMAT, stored.arrays, num_heads=4)
    found, _ = read(FORMAT, stored.arrays, num_heads=4, image_size=(8, 24))
    assert found.architecture.image_size == (8, 24)
    # Eight positions may include the class token's or be those of patches only.
    ambiguous = shapes_with(pos_embed=(1, 8, 16))
    sizes = {"model_args": {"img_size": [8, 16]}}
    assert not described(sizes, ambiguous).architecture.class_token_position


USUAL = "resize_small(17, 'bicubic_antialias', 'down')|central_crop(rounding='nearest')"

COVERED = "resize_small((18, 27), 'bicubic_antialias')"


def preprocessing(chain, mean, std, image_size=(16, 16)):
    return Preprocessing(image_size, 3, chain, mean, std)


def test_preprocessing_is_read_or_that_of_the_family():
    half = (0.5,) * 3
    given = described(
        {
            "pretrained_cfg": {
                "mean": [0.1, 0.2, 0.3],
                "std": [0.4, 0.5, 0.6],
                "crop_pct": 0.8,
                "interpolation": "bilinear",
            }
        }
    )
    chain = USUAL.replace("17, 'bicubic", "20, 'bilinear")
    assert given.preprocessing == preprocessing(chain, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not any("preprocessing" in sentence for sentence in given.assumed)
    flat = {"crop_pct": 1.0, "crop_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
    squashed = described({**flat, "interpolation": "bicubic", "num_heads": 4})
    chain = "resize(interpolation='bicubic_antialias')"
    assert squashed.preprocessing == preprocessing(chain, half, half)

    guessed = described()
    assert guessed.preprocessing == preprocessing(USUAL, half, half)
    assert any(repr(USUAL) in s for s in guessed.assumed)
    scaled = shapes_with(blocks__0__ls1__gamma=(16,))
    assert described(shapes=scaled).preprocessing == preprocessing(USUAL, *IMAGENET)
    deit = described({"architecture": "deit_base_patch16_224"})
    assert deit.preprocessing == preprocessing(USUAL, *IMAGENET)
    published = Preprocessing((8, 8), 3, "resize", half, half)
    known = described(preprocessing=published).preprocessing
    assert known == preprocessing("resize", half, half)


def test_an_unsupported_crop_mode_is_reported():
    border = {"crop_mode": "border", "interpolation": "bicubic", "crop_pct": 1.0}
    found = described({"pretrained_cfg": border})
    assert any("'border'" in sentence for sentence in found.assumed)


def test_class_names(golden, read):
    stored = golden("timm/vit")
    found, _ = read(FORMAT, stored.arrays, **stored.hints)
    assert found.class_names == ("abacus", "bagel", "canoe", "daisy", "easel")
    config = stored.hints["config"] | {"label_names": ["a", "b"]}
    found, _ = read(FORMAT, stored.arrays, config=config)
    assert found.class_names == ()
    assert "names 2 classes, but the head has 5" in found.assumed[-1]


ARGUMENTS = {
    "embed_dim": (32, 16),
    "depth": (12, 1),
    "mlp_ratio": (4.0, 2.0),
    "patch_size": ((16, 16), (4, 4)),
    "in_chans": (1, 3),
    "class_token": (False, True),
    "reg_tokens": (4, 0),
}


def test_a_config_of_another_model_is_refused():
    wrong = {name: values[0] for name, values in ARGUMENTS.items()}
    config = {"num_classes": 1000, "model_args": {**wrong, "num_classes": 7}}
    shapes = shapes_with(head__weight=(5, 16), head__bias=(5,))
    message = r"config\.json does not match the weights"
    with pytest.raises(UserError, match=message) as error:
        described(config, shapes)
    for name, (given, found) in ARGUMENTS.items():
        assert f"{name} is {given} there but {found} in the weights" in str(error.value)
        with pytest.raises(UserError, match=f": {name} is [^;]*$"):
            described({"model_args": {name: given}}, shapes)
    assert "num_classes is 1000 there but 5 in the weights" in str(error.value)
    assert "num_classes of model_args is 7 there but 5 in" in str(error.value)

    right = {name: values[1] for name, values in ARGUMENTS.items()}
    described({"model_args": {**right, "patch_size": 4}}, shapes)


def test_num_classes_at_the_top_overrides_pretrained_cfg():
    """timm gives num_classes at the top precedence, too."""
    shapes = shapes_with(head__weight=(5, 16), head__bias=(5,))
    old = {"pretrained_cfg": {"num_classes": 1000}}
    assert described({"num_classes": 5, **old}, shapes).architecture.num_classes == 5
    for config in (old, {"num_classes": 1000}):
        with pytest.raises(UserError, match="num_classes is 1000 there but 5 in"):
            described(config, shapes)
        with pytest.raises(UserError, match="num_classes is 1000 there but 0 in"):
            described(config)


def test_models_of_imagenet_21k_were_trained_with_a_sigmoid():
    assert described().outputs == "exclusive"
    many = shapes_with(head__weight=(21843, 16), head__bias=(21843,))
    assert described(shapes=many).outputs == "independent"


@pytest.mark.parametrize(
    ("names", "feature"),
    [
        ({"blocks__0__attn__q_norm__weight": (4,)}, "qk-norm"),
        ({"blocks__0__attn__rel_pos_h": (4, 4)}, "relative position"),
        (
            {"blocks__0__attn__relative_position_bias_table": (4, 4)},
            "relative position",
        ),
        ({"rope__freqs": (4,)}, "rotary"),
        ({"pos_embed": None}, "not learned"),
        ({"norm_pre__weight": (16,)}, "before the blocks"),
        ({"patch_embed__norm__weight": (16,)}, "after the patch embedding"),
        ({"blocks__0__mlp__w12__weight": (64, 16)}, "SwiGLU"),
        ({"blocks__0__mlp__fc1__weight": (64, 16)}, "SwiGLU"),
        ({"blocks__0__attn__q_bias": (16,)}, "separate projections"),
        ({"blocks__0__attn__norm__weight": (16,)}, "inside of attention"),
        ({"blocks__0__attns__0__qkv__weight": (48, 16)}, "parallel branches"),
        ({"layers__0__blocks__0__norm1__weight": (16,)}, "several resolutions"),
        ({"blocks__0__mlp_tokens__fc1__weight": (8, 16)}, "MLP-Mixer"),
        ({"norm__weight": None}, "no norm after the blocks"),
        ({"fc_norm__weight": (16,)}, "norms before and after pooling"),
        ({"attn_pool__latent": (1, 1, 16)}, "pooling without an MLP"),
        ({"attn_pool__latent": (1, 2, 16)}, "several probes"),
        (
            {"patch_embed__backbone__conv1__0__weight": (8, 3, 3, 3)},
            "other than a ResNet with",
        ),
    ],
)
def test_features_that_are_refused_by_name(names, feature):
    with pytest.raises(UserError, match="vit_jax does not support") as error:
        described(shapes=shapes_with(**names))
    assert feature in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"global_pool": "avgmax"}, "global_pool 'avgmax'"),
        ({"model_args": {"act_layer": "silu"}}, "act_layer 'silu'"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer 'rmsnorm'"),
        ({"model_args": {"pool_include_prefix": True}}, "pool_include_prefix True"),
        ({"architecture": "test_vit3.r160_in1k"}, "pooling of all tokens"),
        ({"architecture": "vit_base_patch16_rpn_224.sw_in1k"}, "res-post-norm"),
        ({"architecture": "vit_base_patch32_clip_quickgelu_224"}, "'quick_gelu'"),
        ({"model_args": []}, "model_args is [], expected an object"),
        ({"architecture": 3}, "architecture is 3, expected a text"),
        (
            {"model_args": {"img_size": "16"}},
            "img_size is '16', expected a number of pi",
        ),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop_pct is 0, expected above 0"),
        (
            {"pretrained_cfg": {"mean": [float("nan")]}},
            "mean is [nan], expected a list",
        ),
        ({"pretrained_cfg": {"std": []}}, "std is [], expected a list of numbers, one"),
        ({"num_classes": -1}, "num_classes is -1, expected a whole number, 0 or more"),
        ({"num_heads": 10**400}, "num_heads is 1000000000000"),
        ({"label_names": [1], "num_classes": 1}, "label_names is [1]"),
    ],
)
def test_unsupported_companion_files_are_refused(config, complaint):
    shapes = shapes_with(head__weight=(1, 16))
    with pytest.raises(UserError) as error:
        described(config, shapes, num_heads=None if "num_heads" in config else 4)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("name", "gelu"),
    [
        ("vit_base_patch16_siglip_224", "exact"),
        ("vit_so400m_patch14_siglip_384", "exact"),
        ("vit_large_patch16_siglip_384", "exact"),
        ("vit_large_patch16_siglip_gap_512", "tanh"),
        ("vit_base_patch32_siglip_256.v2_webli", "tanh"),
        ("vit_so400m_patch16_siglip_gap_384", "tanh"),
        ("vit_giantopt_patch16_siglip_256", "tanh"),
    ],
)
def test_the_gelu_of_siglip_follows_from_the_name(name, gelu):
    """The functions of these names in timm 1.0.31 set this GELU."""
    assert described({"architecture": name}).architecture.gelu == gelu


def test_everything_that_does_not_match_is_reported(golden, read):
    arrays = dict(golden("timm/vit").arrays)
    del arrays["blocks.0.norm1.bias"]
    arrays["blocks.1.norm1.gain"] = np.ones(3, np.float32)
    arrays["norm.bias"] = np.ones(17, np.float32)
    with pytest.raises(UserError) as error:
        read(FORMAT, arrays, num_heads=4)
    message = str(error.value)
    assert "1 missing: blocks.0.norm1.bias" in message
    assert "1 unexpected: blocks.1.norm1.gain" in message
    assert "norm.bias (expected (16,), found (17,))" in message
    with pytest.raises(
        UserError, match=r"pos_embed has shape \(17, 16\), expected 3 di"
    ):
        described(shapes=shapes_with(pos_embed=(17, 16)))


def test_two_names_for_one_tensor_are_reported(golden, read):
    arrays = dict(golden("timm/deit3").arrays)
    arrays["blocks.0.gamma_1"] = arrays["blocks.0.ls1.gamma"]
    with pytest.raises(UserError, match=r"1 unexpected: blocks.0.gamma_1"):
        read(FORMAT, arrays, num_heads=4)


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"posemb": "sincos2d", **NO_POSITION}, "sin-cos"),
        ({"pre_logits": 3}, "tanh layer"),
        ({"registers": 2}, "positions for only one of class token and register tokens"),
        ({"distillation_token": True, **NO_POSITION}, "without positions"),
        ({"distillation_token": True, "registers": 1}, "beside a distillation token"),
        ({"distillation_token": True, "distillation_head": False}, "head of its own"),
    ],
)
def test_features_that_timm_cannot_express_are_named(fields, phrase):
    assert phrase in "; ".join(FORMAT.inexpressible(tiny(**fields)))


def test_a_mixer_is_inexpressible():
    mixer = MixerArchitecture(8, 1, 4, 8, (4, 4), (8, 8), 2)
    assert FORMAT.inexpressible(mixer) == ["an MLP-Mixer"]


def test_differences_of_timm_are_named():
    usual = preprocessing(USUAL, *IMAGENET)
    assert FORMAT.lost(tiny(), usual) == []
    epsilon = FORMAT.lost(tiny(layernorm_epsilon=1e-12), usual)
    assert epsilon == [
        "timm uses 1e-06 as the LayerNorm's epsilon, where this model has 1e-12: "
        "expect slightly different outputs"
    ]
    trunk = {"patch_size": (16, 16), "image_size": (32, 32), "trunk": (1, 1, 1)}
    google = FORMAT.lost(tiny(**trunk), usual)
    assert "epsilons in the trunk's norms, where this model has Google's" in google[0]
    assert "(1, 1, 1)" in google[1]
    cut = preprocessing("central_crop", *IMAGENET)
    (sentence,) = FORMAT.lost(tiny(), cut)
    assert "timm cannot preprocess images with 'central_crop'" in sentence


@pytest.mark.parametrize(
    ("chain", "theirs"),
    [
        ("resize", "resize(interpolation='bilinear_antialias')"),
        ("resize(18, 'bicubic')|central_crop", "resize(18, 'bicubic_antialias')"),
        ("resize_small(18)|central_crop", "resize_small(18, rounding='down')"),
        (USUAL.replace("'down'", "'nearest'"), USUAL),
    ],
)
def test_images_that_timm_resizes_differently(chain, theirs):
    (sentence,) = FORMAT.lost(tiny(), preprocessing(chain, *IMAGENET))
    in_timm, _, here = sentence.partition(", where this model was evaluated with ")
    assert theirs in in_timm.partition("timm will preprocess images with ")[2]
    assert chain in here


@pytest.mark.parametrize(
    ("chain", "size"),
    [
        (USUAL, (16, 16)),
        ("resize(interpolation='bilinear_antialias')", (16, 24)),
        ("resize(18, 'bicubic_antialias')|central_crop", (16, 16)),
        # timm rounds the sides of a rectangle differently from those of a square.
        (f"{COVERED}|central_crop(rounding='nearest')", (16, 24)),
    ],
)
def test_images_that_timm_resizes_in_the_same_way(chain, size):
    images = preprocessing(chain, *IMAGENET, image_size=size)
    a = tiny(image_size=size)
    assert FORMAT.lost(a, images) == []
    config = companions(a, images)["config.json"]
    assert TimmConfig(config).preprocessing(a, None) == (images, [])


@pytest.mark.parametrize("size", [256, 336, 343, 400, 438, 448])
def test_timm_computes_the_same_size_before_the_crop(size):
    images = preprocessing(
        f"resize({size})|central_crop", *IMAGENET, image_size=(224, 224)
    )
    a = tiny(patch_size=(16, 16), image_size=(224, 224))
    config = companions(a, images)["config.json"]["pretrained_cfg"]
    assert math.floor(224 / config["crop_pct"]) == size


@pytest.mark.parametrize("size", [(20, 32), (32, 20), (20, 35), (17, 18), (3, 5)])
def test_pixels_of_the_evaluation_equal_those_of_torchvision(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    (height, width), short = size, min(size)
    # transforms.Resize(17) and transforms.CenterCrop(16) of a Pillow image.
    height, width = (int(17 * side / short) for side in (height, width))
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (round((side - 16) / 2.0) for side in (height, width))
    cropped = np.asarray(resized)[top : top + 16, left : left + 16]
    ours = described().preprocessing.prepare(pixels)
    np.testing.assert_array_equal(ours, cropped)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "vit_base_patch16_224"),
        ({"distillation_token": True}, "deit_base_distilled_patch16_224"),
        ({"trunk": (3, 4, 9)}, "vit_base_r50_s16_224"),
        ({"trunk": (2,)}, "vit_resnet_2"),
    ],
)
def test_the_function_of_timm_that_builds_the_model(fields, name):
    big = {"patch_size": (16, 16), "image_size": (32, 32)}
    images = preprocessing("resize", *IMAGENET, image_size=(32, 32))
    config = companions(tiny(**big, **fields), images)["config.json"]
    assert config["architecture"] == name
    assert config["pretrained_cfg"]["crop_mode"] == "squash"
    assert "label_names" not in config


@pytest.mark.parametrize(("width", "mlp_dim"), [(16, 30), (28, 61), (1152, 4304)])
def test_timm_computes_the_same_width_of_the_mlp(width, mlp_dim):
    a = tiny(width=width, mlp_dim=mlp_dim)
    images = preprocessing("resize", *IMAGENET)
    args = companions(a, images)["config.json"]["model_args"]
    assert int(width * args["mlp_ratio"]) == mlp_dim
