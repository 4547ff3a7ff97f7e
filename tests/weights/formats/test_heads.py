"""Heads under other names, and bodies whose head is not understood."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import vit_jax
from vit_jax.errors import UserError
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors
from vit_jax.weights.formats.layout import Hints, flatten

OWN = {"timm": "head", "huggingface": "classifier"}
RENAMED = [
    *("fc", "head.1", "classifier.1", "head.fc", "heads.head", "head.layers.head"),
    *("linear", "mlp_head.1", "cls_head.fc", "classification_head", "my_classifier"),
    *("heads.0.0", "output", "out_layer", "final", "last_layer", "prediction", "probe"),
]


@pytest.fixture
def load(tmp_path):
    def load(arrays, **hints):
        np.savez(tmp_path / "weights.npz", **arrays)
        with open_tensors(tmp_path / "weights.npz") as tensors:
            reading, params = read_tensors(tensors, Hints(**hints))
            return reading, flatten(params)

    return load


@pytest.fixture(params=OWN)
def model(request, golden):
    """The arrays without their head, the head's weight and bias, and the hints."""
    stored = golden(f"{request.param}/vit")
    own = f"{OWN[request.param]}."
    head = [array for name, array in stored.arrays.items() if name.startswith(own)]
    body = {n: array for n, array in stored.arrays.items() if not n.startswith(own)}
    weight, bias = sorted(head, key=np.ndim, reverse=True)
    return body, weight, bias, stored


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("name", RENAMED)
def test_a_linear_layer_under_another_name(name, prefix, model, load, assert_same):
    body, weight, bias, stored = model
    expected, params = load(stored.arrays, **stored.hints)
    arrays = body | {f"{name}.weight": weight, f"{name}.bias": bias}
    found, same = load({prefix + k: v for k, v in arrays.items()}, **stored.hints)
    assert found.architecture == expected.architecture
    assert found.class_names == expected.class_names
    assert_same(same, params)
    named = f"{prefix}{name}.weight", f"{prefix}{name}.bias"
    said = [s for s in found.assumed if s.startswith("used ")]
    assert said == [f"used {', '.join(named)} as the head"]


def test_a_linear_layer_outside_of_the_encoder(model, load, assert_same):
    body, weight, bias, stored = model
    _, params = load(stored.arrays, **stored.hints)
    arrays = {f"encoder.{name}": array for name, array in body.items()}
    arrays |= {"fc.weight": weight, "fc.bias": bias}
    found, same = load(arrays, **stored.hints)
    assert_same(same, params)
    assert "used fc.weight, fc.bias, which lies outside of the" in found.assumed[-1]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_linear_layer_after_the_encoder_in_a_sequential(
    number, prefix, model, load, assert_same
):
    body, weight, bias, stored = model
    _, params = load(stored.arrays, **stored.hints)
    arrays = {f"{prefix}0.{name}": array for name, array in body.items()}
    arrays |= {f"{prefix}{number}.weight": weight, f"{prefix}{number}.bias": bias}
    _, same = load(arrays, **stored.hints)
    assert_same(same, params)


def test_a_classifier_around_a_model_with_a_head(golden, load, assert_same):
    """The wrapper reads the features of the encoder, whose own head is left over."""
    stored = golden("timm/vit")
    _, params = load(stored.arrays, **stored.hints)
    arrays = {f"backbone.{name}": array for name, array in stored.arrays.items()}
    weight, bias = np.ones((7, 16), np.float32), np.full(7, 2, np.float32)
    beside = {
        "criterion.weight": np.ones(7, np.float32),
        "accuracy.confusion": np.ones((7, 7), np.float32),
    }
    found, read = load(
        arrays | {"fc.weight": weight, "fc.bias": bias} | beside, num_heads=4
    )
    assert found.architecture.num_classes == 7
    np.testing.assert_array_equal(read.pop("head/kernel"), weight.T)
    np.testing.assert_array_equal(read.pop("head/bias"), bias)
    assert_same(read, {k: v for k, v in params.items() if not k.startswith("head/")})
    used, left = found.assumed[-2:]
    assert "used fc.weight, fc.bias" in used
    assert "left out 4 of" in left and "backbone.head.weight" in left


def around(weight, bias):
    """Makes classifiers around an encoder whose head is not all that follows it."""
    square, ones = np.ones((16, 16), np.float32), np.ones(16, np.float32)
    linear = {"fc.weight": weight, "fc.bias": bias}
    return {
        "a norm before it": linear | {"norm.weight": ones, "norm.bias": ones},
        "a layer before it": linear | {"reduce.weight": square, "reduce.bias": ones},
        "a batch norm in a Sequential": {
            "1.weight": ones,
            "1.running_mean": ones,
            "2.weight": weight,
            "2.bias": bias,
        },
        "two layers": linear
        | {"fc2.weight": np.ones((3, 5), np.float32), "fc2.bias": ones[:3]},
        "the model's own head before it": {
            "backbone.head.weight": weight,
            "backbone.head.bias": bias,
            "fc.weight": np.ones((3, 5), np.float32),
            "fc.bias": ones[:3],
        },
    }


@pytest.mark.parametrize("kind", list(around(None, None)))
def test_a_head_is_not_read_without_what_precedes_it(kind, golden, load, assert_same):
    stored = golden("timm/vit")
    _, params = load(stored.arrays, **stored.hints)
    arrays = {n: a for n, a in stored.arrays.items() if not n.startswith("head.")}
    encoder = "0." if "Sequential" in kind else "backbone."
    arrays = {encoder + name: array for name, array in arrays.items()}
    weight, bias = np.ones((5, 16), np.float32), np.ones(5, np.float32)
    found, same = load(arrays | around(weight, bias)[kind], **stored.hints)
    assert found.architecture.num_classes == 0
    assert_same(same, {k: v for k, v in params.items() if not k.startswith("head/")})
    assert any(s.startswith("left out the head (") for s in found.assumed)


def test_projections_before_a_head_are_not_left_out_alone(model, load):
    body, weight, bias, stored = model
    neck = {"neck.weight": np.ones(16, np.float32), "neck.bias": np.ones(16)}
    linear = {"fc.weight": weight, "fc.bias": bias}
    found, _ = load(body | neck | linear, **stored.hints)
    assert found.architecture.num_classes == 0


def other_heads(weight, bias):
    square, ones = np.ones((16, 16), np.float32), np.ones(16, np.float32)
    return {
        "two layers": {
            "head.0.weight": square,
            "head.0.bias": ones,
            "head.2.weight": weight,
            "head.2.bias": bias,
        },
        "norm and linear": {
            "mlp_head.0.weight": ones,
            "mlp_head.0.bias": ones,
            "mlp_head.1.weight": weight,
            "mlp_head.1.bias": bias,
        },
        "batch norm of a linear probe": {
            "head.0.running_mean": ones,
            "head.0.running_var": ones,
            "head.0.num_batches_tracked": np.array(3),
            "head.1.weight": weight,
            "head.1.bias": bias,
        },
        "DINO": {
            "dino_head.mlp.0.weight": square,
            "dino_head.last_layer.weight_g": ones,
            "head.mlp.0.weight": square,
        },
        "two tasks": {
            "head.species.weight": weight,
            "head.species.bias": bias,
            "head.family.weight": weight,
            "head.family.bias": bias,
        },
        "class token and mean of the patches": {
            "linear_head.weight": np.ones((5, 32), np.float32),
            "linear_head.bias": bias,
        },
        "no bias": {"fc.weight": weight},
        "two heads, one of a usual name": {
            "head.weight": weight,
            "head.bias": bias,
            "classifier.weight": weight,
            "classifier.bias": bias,
            "fc.weight": weight,
            "fc.bias": bias,
        },
        "usual names without a bias": {
            "head.weight": weight,
            "classifier.weight": weight,
        },
        "a normalised layer": {
            "head.weight": weight,
            "head.bias": bias,
            "head.scale": ones[:1],
            "classifier.weight": weight,
            "classifier.bias": bias,
            "classifier.scale": ones[:1],
        },
        "a weight-normalised layer": {
            "head.weight_g": ones,
            "head.weight_v": weight,
            "head.bias": bias,
        },
    }


KINDS = list(other_heads(None, None))


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_is_read_without_a_head_that_is_not_understood(
    kind, model, load, assert_same
):
    body, weight, bias, stored = model
    expected, params = load(stored.arrays, **stored.hints)
    head = other_heads(weight, bias)[kind]
    found, same = load(body | head, **stored.hints)
    assert found.architecture.num_classes == 0
    assert found.architecture.width == expected.architecture.width
    assert found.class_names == ()
    assert_same(same, {k: v for k, v in params.items() if not k.startswith("head/")})
    (said,) = [s for s in found.assumed if "left out" in s]
    assert said.startswith("left out the head (")
    assert "the model has 0 classes; num_classes= makes a new head" in said


def test_projections_and_decoders_are_left_out(model, load, assert_same):
    body, _, _, _ = model
    above = {
        "visual_projection.weight": np.ones((8, 16), np.float32),
        "logit_scale": np.ones((), np.float32),
        "text_projection": np.ones((8, 8), np.float32),
        "decoder_blocks.0.attn.qkv.weight": np.ones((9, 3), np.float32),
        "decoder.layers.0.weight": np.ones((9, 3), np.float32),
        "mask_token": np.ones((1, 1, 16), np.float32),
    }
    if "cls_token" not in body:  # Hugging Face's names
        above = {name: a for name, a in above.items() if "_" not in name[:8]}
        above["logit_scale"] = np.ones((), np.float32)
    found, params = load(body | above, num_heads=4)
    assert found.architecture.num_classes == 0
    assert_same(params, load(body, num_heads=4)[1])
    (said,) = [s for s in found.assumed if "left out" in s]
    assert f"left out {len(above)} of {len(body) + len(above)} tensors" in said


def test_an_unknown_layer_of_the_encoder_is_still_refused(model, load):
    body, _, _, _ = model
    extra = {"norm_in.weight": np.ones(16, np.float32)}
    with pytest.raises(UserError, match=r"1 unexpected: norm_in\.weight"):
        load(body | extra, num_heads=4)


def test_a_new_head_takes_its_place(golden, tmp_path):
    stored = golden("timm/vit")
    arrays = {
        name.replace("head.", "head.2."): array for name, array in stored.arrays.items()
    }
    arrays["head.0.weight"] = np.ones((16, 16), np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    # The config counts the classes of the head that is not read.
    (tmp_path / "config.json").write_text(json.dumps(stored.hints["config"]))
    assert vit_jax.load(tmp_path).architecture.num_classes == 0
    model = vit_jax.load(tmp_path, num_classes=3)
    assert model.architecture.num_classes == 3
    assert not np.asarray(model.params["head"]["kernel"]).any()
