"""What is the same for every format: what is refused, left out, and said of a file."""

import ml_dtypes
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors
from vit_jax.weights.formats.layout import Hints, flatten


@pytest.fixture
def load(tmp_path):
    """A function: arrays of a file, hints → Reading, parameters by path."""

    def load(arrays, **hints):
        np.savez(tmp_path / "weights.npz", **arrays)
        with open_tensors(tmp_path / "weights.npz") as tensors:
            reading, params = read_tensors(tensors, Hints(**hints))
            return reading, flatten(params)

    return load


@pytest.fixture
def models(golden, published, random_arrays):
    """{format: (arrays, hints, name of the head's kernel)} of small models."""
    timm, huggingface = golden("timm/vit"), golden("huggingface/vit")
    return {
        "google": (random_arrays(published.google()), {}, "head/kernel"),
        "big_vision": (random_arrays(published.big_vision()), {}, "head/kernel"),
        "timm": (timm.arrays, timm.hints, "head.weight"),
        "huggingface": (huggingface.arrays, huggingface.hints, "classifier.weight"),
    }


FORMATS = ("google", "big_vision", "timm", "huggingface")
# What wraps the encoder in each, and what its head stands in.
PREFIXES = [
    ("google", "params/", ""),
    ("google", "opt/target/params/", "opt/target/"),
    ("big_vision", "params/img/", "params/"),
    ("timm", "backbone.", ""),
    ("timm", "module.encoder.", "module."),
    ("huggingface", "model.", ""),
]


def apart(arrays, head, prefix, outer):
    """The head outside of what wraps the rest."""
    heads = head.rpartition("/" if "/" in head else ".")[0]
    return {
        (outer if name.startswith(heads) else prefix) + name: array
        for name, array in arrays.items()
    }


@pytest.mark.parametrize(("format", "prefix", "outer"), PREFIXES)
def test_a_head_beside_the_encoder_is_taken_and_said(
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
    assert "stands beside the model's other names" in found.assumed[-1]


@pytest.mark.parametrize(("format", "prefix", "outer"), PREFIXES)
def test_a_head_beside_the_encoder_that_does_not_fit(
    format, prefix, outer, models, load
):
    arrays, hints, head = models[format]
    arrays = dict(arrays)
    arrays[head] = np.ones((5, 5), np.float32)
    with pytest.raises(UserError, match="1 of another shape") as error:
        load(apart(arrays, head, prefix, outer), **hints)
    assert "found (5, 5))" in str(error.value)


def test_of_two_heads_the_inner_one_is_taken(models, load, assert_same):
    arrays, hints, _ = models["timm"]
    _, params = load(arrays, **hints)
    wrapped = {f"backbone.{name}": array for name, array in arrays.items()}
    outer = {"head.weight": np.ones((9, 16), np.float32), "head.mlp.0.bias": np.ones(3)}
    found, same = load(wrapped | outer, **hints)
    assert_same(same, params)
    assert "left out 2 of" in found.assumed[-1]
    assert "head.weight, head.mlp.0.bias" in found.assumed[-1]


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_said_of_a_file_that_is_all_read(format, models, load):
    arrays, hints, _ = models[format]
    found, _ = load(arrays, **hints)
    assert not any("left out" in sentence for sentence in found.assumed)


def test_what_is_left_out_is_counted_and_some_of_it_named(models, load):
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
def test_types_that_weights_are_not_saved_in(format, kind, models, load):
    arrays, hints, head = models[format]
    changed = dict(arrays)
    changed[head] = np.full(arrays[head].shape, 1).astype(kind)
    with pytest.raises(UserError, match="1 of a type that weights are not") as error:
        load(changed, **hints)
    assert f"{head} ({changed[head].dtype})" in str(error.value)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_types_that_weights_are_saved_in(kind, models, load):
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
    # And says what to do.
    assert "Use a complete and unchanged copy, or save the model again" in message


def test_names_of_no_format_cannot_break_a_message(load):
    with pytest.raises(UserError, match="2 tensors") as error:
        load({"\x1b[2J" + "x" * 5000: np.ones(1), "a\nb": np.ones(1)})
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_feature_is_shown_by_a_name_that_cannot_break_a_message(models, load):
    arrays, hints, _ = models["timm"]
    name = "blocks.0.attn.q_norm.\x1b\n" + "x" * 5000
    with pytest.raises(UserError, match="qk-norm") as error:
        load(dict(arrays) | {name: np.ones(1)}, **hints)
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 500


# The size that the weights were trained at


@pytest.mark.parametrize(
    ("place", "class_token", "position", "grid"),
    [
        ("pos_embedding", False, False, (1, 4)),
        ("pos_embedding", False, False, (2, 2)),
        # Which look like 2×2 patches behind a class token, or 3×3 without.
        ("pos_embedding", True, False, (1, 5)),
        ("pos_embedding", True, False, (5, 2)),
        ("Transformer/posembed_input/pos_embedding", True, True, (2, 4)),
        ("Transformer/posembed_input/pos_embedding", True, True, (3, 1)),
    ],
)
def test_big_visions_grid_of_a_known_size(
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
    with pytest.raises(UserError, match=r"trained_image_size=\(4, 28\) is cut into 1×"):
        load(arrays, trained_image_size=(4, 28))


def test_what_big_visions_positions_could_also_be(published, random_arrays, load):
    place = "Transformer/posembed_input/pos_embedding"
    arrays = random_arrays(
        published.big_vision(
            grid=(2, 4), place=place, class_token=True, class_token_position=True
        )
    )
    found, _ = load(arrays, image_size=(8, 16))
    assert found.architecture.grid == (3, 3)
    (sentence,) = found.assumed
    assert "3×3 patches or of 2×4 patches behind 1 other token" in sentence
    assert "trained_image_size=(8, 16)" in sentence


def test_fixed_positions_of_a_known_size(published, random_arrays, load):
    arrays = random_arrays(published.big_vision(place=None))
    found, _ = load(arrays, trained_image_size=(8, 12), image_size=(16, 16))
    assert found.architecture.image_size == (8, 12)
    assert found.assumed == ()


@pytest.mark.parametrize("model", ["google", "mixer"])
def test_googles_grid_of_a_known_size(model, published, random_arrays, load):
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
def test_a_companions_size_yields_to_a_known_one(format, models, load):
    arrays, hints, _ = models[format]
    found, _ = load(arrays, **hints, trained_image_size=(8, 32))
    assert found.architecture.grid == (2, 8)
    found, _ = load(arrays, **hints, image_size=(8, 32))
    assert found.architecture.grid == (4, 4)
    assert found.assumed == load(arrays, **hints)[0].assumed
