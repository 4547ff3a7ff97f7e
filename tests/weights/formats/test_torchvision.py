"""torchvision's format, against its forward pass written in NumPy."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors, to_tensors
from vit_jax.weights.formats.layout import Hints, flatten, unflatten
from vit_jax.weights.formats.torchvision import FORMAT

LAYER = "encoder.layers.encoder_layer_"
HEADS = 4


def shapes(width=16, depth=2, mlp_dim=24, classes=5, patches=9, **others):
    d, m = width, mlp_dim
    found = {
        "class_token": (1, 1, d),
        "conv_proj.weight": (d, 3, 4, 4),
        "conv_proj.bias": (d,),
        "encoder.pos_embedding": (1, 1 + patches, d),
        "encoder.ln.weight": (d,),
        "encoder.ln.bias": (d,),
        "heads.head.weight": (classes, d),
        "heads.head.bias": (classes,),
    }
    for i in range(depth):
        layer = {
            "ln_1.weight": (d,),
            "ln_1.bias": (d,),
            "self_attention.in_proj_weight": (3 * d, d),
            "self_attention.in_proj_bias": (3 * d,),
            "self_attention.out_proj.weight": (d, d),
            "self_attention.out_proj.bias": (d,),
            "ln_2.weight": (d,),
            "ln_2.bias": (d,),
            "mlp.0.weight": (m, d),
            "mlp.0.bias": (m,),
            "mlp.3.weight": (d, m),
            "mlp.3.bias": (d,),
        }
        found |= {f"{LAYER}{i}.{name}": shape for name, shape in layer.items()}
    return found | others


@pytest.fixture
def tensors(random_arrays):
    return random_arrays(shapes())


@pytest.fixture
def load(tmp_path):
    def load(arrays, **hints):
        np.savez(tmp_path / "weights.npz", **arrays)
        with open_tensors(tmp_path / "weights.npz") as opened:
            reading, params = read_tensors(opened, Hints(num_heads=HEADS, **hints))
            return reading, flatten(params)

    return load


def tiny(**changes):
    sizes = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": HEADS}
    inputs = {"patch_size": (4, 4), "image_size": (12, 12), "num_classes": 5}
    return Architecture(**{**sizes, **inputs, "gelu": "exact", **changes})


def check(arrays, load, torch_reference, random_images, model_logits):
    reading, params = load(arrays)
    images = random_images(reading.architecture)
    expected = torch_reference.torchvision_logits(arrays, images, HEADS)
    assert np.abs(expected).max() > 0.1
    logits = model_logits(reading.architecture, params, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    return reading, params


def test_logits_and_round_trip(
    tensors, load, torch_reference, random_images, model_logits, write, assert_same
):
    reading, params = check(tensors, load, torch_reference, random_images, model_logits)
    assert reading.architecture == tiny()
    assert_same(write(FORMAT, reading.architecture, params), tensors)
    _, written, lost = to_tensors(
        FORMAT, reading.architecture, unflatten(params), reading.preprocessing
    )
    assert_same(written, tensors)
    assert lost == []


def test_a_tanh_layer_before_the_head(
    random_arrays, load, torch_reference, random_images, model_logits
):
    layer = {
        "heads.pre_logits.weight": (7, 16),
        "heads.pre_logits.bias": (7,),
        "heads.head.weight": (5, 7),
    }
    reading, _ = check(
        random_arrays(shapes(**layer)),
        load,
        torch_reference,
        random_images,
        model_logits,
    )
    assert reading.architecture == tiny(pre_logits=7)


def test_names_of_older_versions_and_any_prefix(tensors, load, assert_same):
    _, params = load(tensors)
    old = {
        "model.vit."
        + name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): array
        for name, array in tensors.items()
    }
    found, same = load(old)
    assert found.architecture == tiny()
    assert_same(same, params)


@pytest.mark.parametrize("name", ["heads", "heads.0", "head", "fc", "heads.head.1"])
def test_a_replaced_head(name, tensors, load, assert_same):
    _, params = load(tensors)
    renamed = {k.replace("heads.head", name): v for k, v in tensors.items()}
    found, same = load(renamed)
    assert found.architecture == tiny()
    assert_same(same, params)
    assert f"used {name}.weight, {name}.bias as the head" in found.assumed


@pytest.mark.parametrize(
    ("size", "width", "depth", "chain"),
    [
        (224, 768, 12, "resize_small(256, 'bilinear_antialias', 'down')"),
        (224, 1024, 24, "resize_small(242, 'bilinear_antialias', 'down')"),
        # SWAG's weights, in torchvision's presets.
        (384, 768, 12, "resize_small(384, 'bicubic_antialias', 'down')"),
        (512, 1024, 24, "resize_small(512, 'bicubic_antialias', 'down')"),
    ],
)
def test_the_preprocessing_of_the_published_weights_is_assumed(
    size, width, depth, chain
):
    names = shapes(width, depth, 4 * width, patches=(size // 16) ** 2)
    names["conv_proj.weight"] = (width, 3, 16, 16)
    found = FORMAT.read(names, Hints())
    p = found.preprocessing
    assert p.image_size == (size, size)
    assert p.mean == (0.485, 0.456, 0.406) and p.std == (0.229, 0.224, 0.225)
    assert p.eval_transform == f"{chain}|central_crop(rounding='nearest')"
    assert any("do not record the preprocessing" in s for s in found.assumed)


def test_a_stem_of_convolutions_is_refused(tensors, load):
    del tensors["conv_proj.weight"], tensors["conv_proj.bias"]
    stem = {"conv_proj.conv_bn_relu_0.0.weight": np.ones((8, 3, 3, 3), np.float32)}
    with pytest.raises(UserError, match="a stem of several convolutions"):
        load(tensors | stem)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"gelu": "tanh"}, "GELU tanh"),
        ({"pooling": "gap"}, "pooling other than the class token"),
        ({"channels": 1}, "images of 1 channels"),
        ({"image_size": (8, 12)}, "not square"),
        ({"layer_scale": True}, "LayerScale"),
    ],
)
def test_models_that_torchvision_cannot_hold(changes, phrase):
    assert phrase in "; ".join(FORMAT.inexpressible(tiny(**changes)))
