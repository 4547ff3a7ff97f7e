"""Behaviour common to all formats: refusals, tensors left out, and assumptions."""

import ml_dtypes
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors
from vit_jax.weights.formats.layout import Hints, flatten


@pytest.fixture
def load(tmp_path):
    """Returns a function: arrays of a file, hints → Reading, parameters by path."""

    def load(arrays, **hints):
        np.savez(tmp_path / "weights.npz", **arrays)
        with open_tensors(tmp_path / "weights.npz") as tensors:
            reading, params = read_tensors(tensors, Hints(**hints))
            return reading, flatten(params)

    return load


@pytest.fixture
def models(golden, published, random_arrays):
    """Makes small models: {format: (arrays, hints, name of the head's kernel)}."""
    timm, huggingface = golden("timm/vit"), golden("huggingface/vit")
    return {
        "google": (random_arrays(published.google()), {}, "head/kernel"),
        "big_vision": (random_arrays(published.big_vision()), {}, "head/kernel"),
        "timm": (timm.arrays, timm.hints, "head.weight"),
        "huggingface": (huggingface.arrays, huggingface.hints, "classifier.weight"),
    }


FORMATS = ("google", "big_vision", "timm", "huggingface")
# (format, prefix of the encoder, prefix of the head)
PREFIXES = [
    ("google", "params/", ""),
    ("google", "opt/target/params/", "opt/target/"),
    ("big_vision", "params/img/", "params/"),
    ("timm", "backbone.", ""),
    ("timm", "module.encoder.", "module."),
    ("huggingface", "model.", ""),
]


def apart(arrays, head, prefix, outer):
    """Renames the head with the prefix `outer`, all other tensors with `prefix`."""
    heads = head.rpartition("/" if "/" in head else ".")[0]
    return {
        (outer if name.startswith(heads) else prefix) + name: array
        for name, array in arrays.items()
    }


@pytest.mark.parametrize(("format", "prefix", "outer"), PREFIXES)
def test_a_head_outside_of_the_prefix_is_used_and_reported(
    format, prefix, outer, models, load, assert_same
):
    arrays, hints, head = models[format]
    expected, params = load(arrays, **hints)
    found, same = load(apart(arrays, head, prefix, outer), **hints)
    assert found.architecture == expected.architecture
    assert_same(same, params)
    assert found.assumed[:-1] == expected.assumed
    bias = head.replace("weight", "bias").replace("kernel", "bias")
    for name in (head, bias):
        assert f"{outer}{name}" in found.assumed[-1]
    assert "lies outside of the model's other names" in found.assumed[-1]


@pytest.mark.parametrize(("format", "prefix", "outer"), PREFIXES)
def test_a_head_outside_of_the_prefix_that_does_not_fit_is_refused(
    format, prefix, outer, models, load
):
    arrays, hints, head = models[format]
    arrays = dict(arrays)
    arrays[head] = np.ones((5, 5), np.float32)
    with pytest.raises(UserError, match="1 of another shape") as error:
        load(apart(arrays, head, prefix, outer), **hints)
    assert "found (5, 5))" in str(error.value)


def test_the_inner_one_of_two_heads_is_used(models, load, assert_same):
    arrays, hints, _ = models["timm"]
    _, params = load(arrays, **hints)
    wrapped = {f"backbone.{name}": array for name, array in arrays.items()}
    outer = {"head.weight": np.ones((9, 16), np.float32), "head.mlp.0.bias": np.ones(3)}
    found, same = load(wrapped | outer, **hints)
    assert_same(same, params)
    assert "left out 2 of" in found.assumed[-1]
    assert "head.weight, head.mlp.0.bias" in found.assumed[-1]


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_reported_as_left_out_if_everything_is_read(format, models, load):
    arrays, hints, _ = models[format]
    found, _ = load(arrays, **hints)
    assert not any("left out" in sentence for sentence in found.assumed)


def test_tensors_that_are_left_out_are_counted_and_some_named(models, load):
    arrays, _, _ = models["google"]
    inside = {f"opt/target/{name}": array for name, array in arrays.items()}
    beside = {f"opt/state/{i}": np.ones(1) for i in range(12)}
    found, _ = load(inside | beside)
    (sentence,) = found.assumed
    assert sentence.startswith(f"left out 12 of {12 + len(arrays)} tensors")
    assert "opt/state/0, opt/state/1, " in sentence
    assert sentence.endswith("opt/state/9, … and 2 more")


@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int64", "bool", "complex64", "longdouble", "<U1", "S4"]
)
@pytest.mark.parametrize("format", FORMATS)
def test_other_dtypes_are_refused(format, kind, models, load):
    arrays, hints, head = models[format]
    changed = dict(arrays)
    changed[head] = np.full(arrays[head].shape, 1).astype(kind)
    with pytest.raises(UserError, match="1 of a type that weights are not") as error:
        load(changed, **hints)
    assert f"{head} ({changed[head].dtype})" in str(error.value)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_floating_dtypes_are_read_as_float32(kind, models, load):
    arrays, hints, head = models["timm"]
    stored = arrays[head].astype(kind)
    expected = stored.astype(np.float32)
    if kind is ml_dtypes.bfloat16:
        stored = stored.view("V2")  # as NumPy saves it
    _, params = load(dict(arrays) | {head: stored}, **hints)
    np.testing.assert_array_equal(params["head/kernel"], expected.T)


@pytest.mark.parametrize("format", FORMATS)
def test_names_cannot_break_a_message(format, models, load):
    arrays, hints, _ = models[format]
    hostile = ["\x1b[2J" + "x" * 5000, "a\nb, c", "plain"]
    with pytest.raises(UserError, match="3 unexpected: ") as error:
        load(dict(arrays) | {name: np.ones(1) for name in hostile}, **hints)
    message = str(error.value)
    assert r"'\x1b[2Jxx" in message and r"'a\nb, c'" in message
    assert ", plain" in message
    assert "\x1b" not in message
    assert message.count("\n") == 1
    assert len(message) < 1000
    # The message ends with a remedy.
    assert "Use a complete and unchanged copy, or save the model again" in message


def test_names_of_no_format_cannot_break_a_message(load):
    with pytest.raises(UserError, match="2 tensors") as error:
        load({"\x1b[2J" + "x" * 5000: np.ones(1), "a\nb": np.ones(1)})
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_the_name_that_reveals_a_feature_cannot_break_a_message(models, load):
    arrays, hints, _ = models["timm"]
    name = "blocks.0.attn.q_norm.\x1b\n" + "x" * 5000
    with pytest.raises(UserError, match="qk-norm") as error:
        load(dict(arrays) | {name: np.ones(1)}, **hints)
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 500


# trained_image_size


@pytest.mark.parametrize(
    ("place", "class_token", "position", "grid"),
    [
        ("pos_embedding", False, False, (1, 4)),
        ("pos_embedding", False, False, (2, 2)),
        # These look like 2×2 patches after a class token, or 3×3 without one.
        ("pos_embedding", True, False, (1, 5)),
        ("pos_embedding", True, False, (5, 2)),
        ("Transformer/posembed_input/pos_embedding", True, True, (2, 4)),
        ("Transformer/posembed_input/pos_embedding", True, True, (3, 1)),
    ],
)
def test_the_grid_in_big_vision_follows_a_known_size(
    place, class_token, position, grid, published, random_arrays, load
):
    arrays = random_arrays(
        published.big_vision(
            grid=grid,
            place=place,
            class_token=class_token,
            class_token_position=position,
        )
    )
    size = (4 * grid[0], 4 * grid[1])
    found, params = load(arrays, trained_image_size=size, image_size=(8, 8))
    assert found.architecture.grid == grid
    assert found.architecture.class_token_position == position
    assert found.assumed == ()
    assert params["pos_embed"].shape == (1, *grid, 16)
    stored = arrays[place][0, position:].reshape(1, *grid, 16)
    np.testing.assert_array_equal(params["pos_embed"], stored)
    with pytest.raises(UserError, match=r"trained_image_size=\(4, 28\) has 1×7 patch"):
        load(arrays, trained_image_size=(4, 28))


def test_an_ambiguous_grid_in_big_vision_is_reported(published, random_arrays, load):
    place = "Transformer/posembed_input/pos_embedding"
    arrays = random_arrays(
        published.big_vision(
            grid=(2, 4), place=place, class_token=True, class_token_position=True
        )
    )
    found, _ = load(arrays, image_size=(8, 16))
    assert found.architecture.grid == (3, 3)
    (sentence,) = found.assumed
    assert "3×3 patches or 2×4 patches after 1 other token" in sentence
    assert "trained_image_size=(8, 16)" in sentence


def test_fixed_positions_follow_a_known_size(published, random_arrays, load):
    arrays = random_arrays(published.big_vision(place=None))
    found, _ = load(arrays, trained_image_size=(8, 12), image_size=(16, 16))
    assert found.architecture.image_size == (8, 12)
    assert found.assumed == ()


@pytest.mark.parametrize("model", ["google", "mixer"])
def test_the_grid_in_googles_files_follows_a_known_size(
    model, published, random_arrays, load
):
    shapes = published.mixer(tokens=9)
    if model == "google":
        shapes = published.google(grid=(1, 9))
    arrays = random_arrays(shapes)
    assert load(arrays)[0].architecture.grid == (3, 3)
    found, _ = load(arrays, image_size=(4, 36))
    assert found.architecture.grid == (3, 3)
    assert "trained_image_size=(4, 36)" in found.assumed[0]
    found, _ = load(arrays, trained_image_size=(4, 36))
    assert found.architecture.grid == (1, 9)


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_a_known_size_overrides_the_companions(format, models, load):
    arrays, hints, _ = models[format]
    found, _ = load(arrays, **hints, trained_image_size=(8, 32))
    assert found.architecture.grid == (2, 8)
    found, _ = load(arrays, **hints, image_size=(8, 32))
    assert found.architecture.grid == (4, 4)
    assert found.assumed == load(arrays, **hints)[0].assumed
