"""mmpretrain's format, against its forward pass written in NumPy."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors
from vit_jax.weights.formats.layout import Hints, flatten
from vit_jax.weights.formats.mmpretrain import FORMAT

HEADS = 4
HALF, IMAGENET = (0.5,) * 3, (0.485, 0.456, 0.406)


def shapes(positions=10, scale=False, norm="ln1", tokens=("cls_token",), **others):
    """Makes the shapes of a model of width 16 with 3 × 3 patches of 4 pixels."""
    d, m = 16, 24
    found = {f"backbone.{token}": (1, 1, d) for token in tokens} | {
        "backbone.pos_embed": (1, positions, d),
        "backbone.patch_embed.projection.weight": (d, 3, 4, 4),
        "backbone.patch_embed.projection.bias": (d,),
        f"backbone.{norm}.weight": (d,),
        f"backbone.{norm}.bias": (d,),
        "head.layers.head.weight": (5, d),
        "head.layers.head.bias": (5,),
    }
    for i in range(2):
        layer = {
            "ln1.weight": (d,),
            "ln1.bias": (d,),
            "attn.qkv.weight": (3 * d, d),
            "attn.qkv.bias": (3 * d,),
            "attn.proj.weight": (d, d),
            "attn.proj.bias": (d,),
            "ln2.weight": (d,),
            "ln2.bias": (d,),
            "ffn.layers.0.0.weight": (m, d),
            "ffn.layers.0.0.bias": (m,),
            "ffn.layers.1.weight": (d, m),
            "ffn.layers.1.bias": (d,),
        }
        if scale:
            layer |= {"attn.gamma1.weight": (d,), "ffn.gamma2.weight": (d,)}
        found |= {f"backbone.layers.{i}.{name}": shape for name, shape in layer.items()}
    return found | {name.replace("__", "."): shape for name, shape in others.items()}


def tiny(**changes):
    sizes = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": HEADS}
    inputs = {"patch_size": (4, 4), "image_size": (12, 12), "num_classes": 5}
    return Architecture(**{**sizes, **inputs, "gelu": "exact", **changes})


LINEAR = {
    "head__layers__head_dist__weight": (5, 16),
    "head__layers__head_dist__bias": (5,),
}
# Kind of model → (arguments of `shapes`, fields of the architecture, mean).
MODELS = {
    "vit": ({}, {}, HALF),
    "tanh": (
        {
            "head__layers__pre_logits__weight": (7, 16),
            "head__layers__pre_logits__bias": (7,),
            "head__layers__head__weight": (5, 7),
        },
        {"pre_logits": 7},
        HALF,
    ),
    "distilled": (
        {"positions": 11, "tokens": ("cls_token", "dist_token"), **LINEAR},
        {"distillation_token": True},
        IMAGENET,
    ),
    "deit3": (
        {"positions": 9, "scale": True},
        {"layer_scale": True, "class_token_position": False},
        IMAGENET,
    ),
    "mean": ({"norm": "ln2"}, {"pooling": "gap", "norm": "after_pool"}, IMAGENET),
    "no_class_token": (
        {"norm": "ln2", "tokens": (), "positions": 9},
        {
            "pooling": "gap",
            "norm": "after_pool",
            "class_token": False,
            "class_token_position": False,
        },
        IMAGENET,
    ),
}


@pytest.fixture
def load(tmp_path):
    def load(arrays, **hints):
        np.savez(tmp_path / "weights.npz", **arrays)
        with open_tensors(tmp_path / "weights.npz") as opened:
            reading, params = read_tensors(opened, Hints(num_heads=HEADS, **hints))
            return reading, flatten(params)

    return load


@pytest.mark.parametrize("kind", MODELS)
def test_logits_and_round_trip(
    kind,
    random_arrays,
    load,
    torch_reference,
    random_images,
    model_logits,
    write,
    assert_same,
):
    arguments, fields, mean = MODELS[kind]
    arrays = random_arrays(shapes(**arguments))
    reading, params = load(arrays)
    assert reading.architecture == tiny(**fields)
    assert reading.preprocessing.mean == mean
    images = random_images(reading.architecture)
    expected = torch_reference.mmpretrain_logits(arrays, images, HEADS)
    assert np.abs(expected).max() > 0.1
    logits = model_logits(reading.architecture, params, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    assert_same(write(FORMAT, reading.architecture, params), arrays)


def test_an_encoder_alone_and_other_names(random_arrays, load, assert_same):
    arrays = random_arrays(shapes(scale=True))
    _, params = load(arrays)
    body = {
        name.removeprefix("backbone.").replace("gamma2.weight", "gamma2.scale"): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    found, same = load(body)
    assert found.architecture == tiny(layer_scale=True, num_classes=0)
    assert_same(same, {k: v for k, v in params.items() if not k.startswith("head/")})
    # A classifier of mmpretrain's LinearClsHead, in a wrapper.
    fc = {f"module.{k.replace('layers.head', 'fc')}": v for k, v in arrays.items()}
    found, same = load(fc)
    assert found.architecture == tiny(layer_scale=True)
    assert_same(same, params)


def test_the_preprocessing_is_assumed_and_said(random_arrays, load):
    found, _ = load(random_arrays(shapes()))
    assert found.preprocessing.std == HALF
    expected = "resize_small(14, 'bicubic_antialias', 'down')"
    assert found.preprocessing.eval_transform == (
        f"{expected}|central_crop(rounding='nearest')"
    )
    assert any("do not record the preprocessing" in s for s in found.assumed)


def test_the_small_variant_has_its_own_number_of_heads():
    d = 768
    names = {
        name: tuple({16: d, 48: 3 * d, 24: 3 * d}.get(n, n) for n in shape)
        for name, shape in shapes().items()
    }
    layers = {
        name.replace("layers.1.", f"layers.{i}."): shape
        for i in range(2, 8)
        for name, shape in names.items()
        if "layers.1." in name and "ffn.layers.1" not in name
    }
    assert FORMAT.read(names | layers, Hints()).architecture.num_heads == 8


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("backbone__pre_norm__weight", "a norm before the blocks"),
        ("backbone__layers__0__attn__relative_position_bias_table", "relative pos"),
        ("backbone__layers__0__ffn__w12__weight", "SwiGLU"),
        ("backbone__ln2__weight", "norms before and after pooling"),
    ],
)
def test_features_that_are_refused(name, feature, random_arrays, load):
    with pytest.raises(UserError, match=feature):
        load(random_arrays(shapes(**{name: (16,)})))
