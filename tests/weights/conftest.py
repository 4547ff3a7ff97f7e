"""Fixtures that make, load and check files of random weights in all formats."""

import functools
import io
import json
import pathlib
import pickle
import runpy
import types
import zipfile
from typing import ClassVar

import jax
import numpy as np
import pytest

from vit_jax.models import abstract_params, build
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.layout import (
    Hints,
    flatten,
    piece_shapes,
    read_params,
    unflatten,
    write_tensors,
)

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
_PRE_LINEN = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
_LINEN = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def _arrays(path):
    """Reads all arrays of an .npz and closes the file."""
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="session")
def reference():
    """Runs tests/weights/numpy_reference.py and returns it as a namespace."""
    path = pathlib.Path(__file__).with_name("numpy_reference.py")
    return types.SimpleNamespace(**runpy.run_path(str(path)))


@pytest.fixture(scope="session")
def torch_reference():
    """Runs tests/weights/torch_reference.py and returns it as a namespace."""
    path = pathlib.Path(__file__).with_name("torch_reference.py")
    return types.SimpleNamespace(**runpy.run_path(str(path)))


@pytest.fixture(scope="session")
def write_torch():
    """Returns a function: path, nested dict of float32 arrays → torch.save's file."""
    return _write_torch


@pytest.fixture(scope="session")
def published():
    """Returns functions from a model's sizes to the names and shapes in its file."""
    return types.SimpleNamespace(
        google=_google, mixer=_mixer, old_mixer=_old_mixer, big_vision=_big_vision
    )


@pytest.fixture(scope="session")
def random_arrays():
    """Returns a function that makes arrays of given shapes.

    No array is constant zero or one, so that an array that is ignored is noticed.
    """

    def arrays(shapes, seed=0):
        rng = np.random.default_rng(seed)

        def draw(name, shape):
            if name.endswith("kernel") or name[-7:-1] == "kernel":
                # Outputs have about the scale of the inputs.
                spread = np.sqrt(shape[-1] / np.prod(shape))
            else:
                spread = 0.3
            return rng.normal(name.endswith("scale"), spread, shape).astype(np.float32)

        return {name: draw(name, shape) for name, shape in shapes.items()}

    return arrays


@pytest.fixture(scope="session")
def golden():
    """Returns a function that loads "timm/NAME" or "huggingface/NAME".

    tests/golden/make_timm_hf.py made these with the library. A model has `arrays` by
    name, `hints` from the companion files, and images with the library's logits:
    `reference`, and for some models `resized`.
    """

    def golden(name):
        directory = _GOLDEN / name
        companions = {"config": "config", "preprocessor": "preprocessor_config"}
        return types.SimpleNamespace(
            arrays=_golden_arrays(directory),
            hints={
                hint: json.loads((directory / f"{file}.json").read_text())
                for hint, file in companions.items()
                if (directory / f"{file}.json").exists()
            },
            **{file.stem: _arrays(file) for file in directory.glob("*.npz")},
        )

    return golden


@pytest.fixture
def read(tmp_path):
    """Returns a function: format, arrays, hints → Reading, parameters by path."""

    def read(format, arrays, *, recognised=True, **hints):
        path = tmp_path / "weights.npz"
        np.savez(path, **arrays)
        with open_tensors(path) as tensors:
            assert format.recognises(tensors.specs) == recognised
            pieces = format.pieces(tensors.specs)
            reading = format.read(piece_shapes(tensors.specs, pieces), Hints(**hints))
            expected = _expected(reading.architecture)
            rows = format.rows(reading.architecture)
            return reading, read_params(tensors, pieces, rows, expected, format.ignored)

    return read


@pytest.fixture(scope="session")
def write():
    """Returns a function: format, architecture, parameters by path → arrays."""

    def write(format, architecture, params):
        assert not format.inexpressible(architecture)
        assert params.keys() == _expected(architecture).keys()
        return write_tensors(params, format.rows(architecture))

    return write


@pytest.fixture(scope="session")
def shapes_in_file():
    """Returns a function: format, architecture → shapes in its file, unallocated."""

    def shapes(format, architecture):
        expected = _expected(architecture)
        empty = {
            path: np.broadcast_to(np.float32(0), shape)
            for path, shape in expected.items()
        }
        return {
            row.theirs: row.layout.write(*(empty[path] for path in row.ours)).shape
            for row in format.rows(architecture)
        }

    return shapes


@pytest.fixture(scope="session")
def random_params(random_arrays):
    """Returns a function: architecture → random parameters by path."""
    return lambda architecture, seed=0: random_arrays(_expected(architecture), seed)


@pytest.fixture(scope="session")
def random_images():
    def images(architecture):
        shape = (2, *architecture.image_size, architecture.channels)
        rng = np.random.default_rng(7)
        return rng.uniform(-1, 1, size=shape).astype(np.float32)

    return images


@pytest.fixture(scope="session")
def model_logits():
    def logits(architecture, params, images):
        with jax.default_matmul_precision("highest"):
            apply = jax.jit(build(architecture).apply)
            return np.asarray(apply({"params": unflatten(params)}, images))

    return logits


@pytest.fixture(scope="session")
def assert_same():
    """Returns a function that asserts equal names, and arrays equal bit for bit."""

    def check(found, expected):
        assert sorted(found) == sorted(expected)
        for name in expected:
            assert found[name].dtype == expected[name].dtype, name
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)

    return check


class _Name:
    """A name that a pickle mentions without looking it up."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Rebuilt:
    """A tensor, pickled as the call that rebuilds it from its storage."""

    def __init__(self, number, array):
        self.number, self.array = number, array

    def __reduce__(self):
        shape = self.array.shape
        steps = tuple(step // 4 for step in np.empty(shape, np.float32).strides)
        return _rebuild, (_Storage(self), 0, shape, steps, False, {})


class _Storage:
    def __init__(self, tensor):
        self.tensor = tensor


def _rebuild(*_):
    raise AssertionError("only its name is written")


class _Pickler(pickle._Pickler):
    """The pickler in Python, which writes names without importing them."""

    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        kind = _Name("torch", "FloatStorage")
        tensor = obj.tensor
        return ("storage", kind, str(tensor.number), "cpu", tensor.array.size)

    def save_name(self, name):
        self.write(f"c{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    def save_function(self, function):
        assert function is _rebuild
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n")

    dispatch: ClassVar = {
        **pickle._Pickler.dispatch,
        _Name: save_name,
        types.FunctionType: save_function,
    }


def _write_torch(path, saved):
    arrays = []

    def wrapped(value):
        if isinstance(value, dict):
            return {key: wrapped(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [wrapped(inner) for inner in value]
        if not isinstance(value, np.ndarray):
            return value
        arrays.append(np.ascontiguousarray(value, np.float32))
        return _Rebuilt(len(arrays) - 1, arrays[-1])

    file = io.BytesIO()
    _Pickler(file, 2).dump(wrapped(saved))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for number, array in enumerate(arrays):
            archive.writestr(f"archive/data/{number}", array.tobytes())
    return path


def _golden_arrays(directory):
    shapes = directory / "shapes.json"
    if shapes.exists():
        draw = runpy.run_path(str(_GOLDEN / "random_weights.py"))["random_weight"]
        shapes = json.loads(shapes.read_text())
        return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}
    index = directory / "model.safetensors.index.json"
    file = index if index.exists() else directory / "model.safetensors"
    with open_tensors(file) as tensors:
        return {name: tensors.read(name) for name in tensors.specs}


@functools.cache
def _expected(architecture):
    return {k: v.shape for k, v in flatten(abstract_params(architecture)).items()}


def _google(
    *, grid=(2, 2), class_token=True, linen=False, trunk=None, channels=3, **sizes
):
    shapes, features = {}, channels
    if trunk is not None:
        shapes, features = _resnet(trunk, channels)
    shapes |= _encoder(_LINEN if linen else _PRE_LINEN, channels=features, **sizes)
    d = shapes["embedding/bias"][0]
    count = grid[0] * grid[1] + class_token
    shapes["Transformer/posembed_input/pos_embedding"] = (1, count, d)
    return shapes | ({"cls": (1, 1, d)} if class_token else {})


def _resnet(units, channels):
    """Returns the trunk's shapes and its number of output channels."""
    shapes = {"conv_root/kernel": (7, 7, channels, 64)} | _group_norm("gn_root", 64)
    c = 64
    for stage, count in enumerate(units, 1):
        f = 32 * 2**stage
        for unit in range(1, count + 1):
            name = f"block{stage}/unit{unit}"
            shapes |= {
                f"{name}/conv1/kernel": (1, 1, c, f),
                f"{name}/conv2/kernel": (3, 3, f, f),
                f"{name}/conv3/kernel": (1, 1, f, 4 * f),
            }
            for number, width in (1, f), (2, f), (3, 4 * f):
                shapes |= _group_norm(f"{name}/gn{number}", width)
            if unit == 1:
                shapes[f"{name}/conv_proj/kernel"] = (1, 1, c, 4 * f)
                shapes |= _group_norm(f"{name}/gn_proj", 4 * f)
            c = 4 * f
    return shapes, c


def _group_norm(name, c):
    return {f"{name}/scale": (1, 1, 1, c), f"{name}/bias": (1, 1, 1, c)}


def _big_vision(
    *,
    grid=(2, 2),
    class_token=False,
    class_token_position=False,
    place="pos_embedding",
    map_head=None,
    stacked=False,
    linen=True,
    **sizes,
):
    numbering = _LINEN if linen else _PRE_LINEN
    shapes = _encoder(numbering, **sizes)
    d = shapes["embedding/bias"][0]
    if place:
        count = grid[0] * grid[1] + class_token_position
        shapes[place] = (1, count, d)
    if class_token:
        shapes["cls"] = (1, 1, d)
    if map_head is not None:
        # The layers are those of a block, but attention comes before the only norm.
        names = ["MultiHeadDotProductAttention_0", "LayerNorm_0", "MlpBlock_0"]
        if not linen:
            names[1:] = ["LayerNorm_1", "MlpBlock_2"]
        attention, _, mlp = numbering
        renames = dict(zip((attention, "LayerNorm_0", mlp), names, strict=True))
        block = "Transformer/encoderblock_0/"
        for name in [name for name in shapes if name.startswith(block)]:
            part, _, leaf = name.removeprefix(block).partition("/")
            if part in renames:
                shapes[f"{map_head}{renames[part]}/{leaf}"] = shapes[name]
        shapes[map_head + "probe"] = (1, 1, d)
    if stacked:
        first = "Transformer/encoderblock_0/"
        depth = sum("LayerNorm_0/scale" in n for n in shapes if "encoderblock_" in n)
        stack = {
            name.replace(first, "Transformer/encoderblock/"): (depth, *shape)
            for name, shape in shapes.items()
            if name.startswith(first)
        }
        rest = {n: s for n, s in shapes.items() if "encoderblock_" not in n}
        return rest | stack
    return shapes


def _encoder(
    numbering,
    *,
    width=16,
    depth=2,
    mlp_dim=24,
    num_heads=2,
    kernel=(4, 4),
    channels=3,
    num_classes=5,
    pre_logits=0,
):
    d, h, k, m = width, num_heads, width // num_heads, mlp_dim
    attention, norm2, mlp = numbering
    shapes = {"embedding/kernel": (*kernel, channels, d), "embedding/bias": (d,)}
    for i in range(depth):
        block = {
            "LayerNorm_0/scale": (d,),
            "LayerNorm_0/bias": (d,),
            f"{attention}/query/kernel": (d, h, k),
            f"{attention}/query/bias": (h, k),
            f"{attention}/key/kernel": (d, h, k),
            f"{attention}/key/bias": (h, k),
            f"{attention}/value/kernel": (d, h, k),
            f"{attention}/value/bias": (h, k),
            f"{attention}/out/kernel": (h, k, d),
            f"{attention}/out/bias": (d,),
            f"{norm2}/scale": (d,),
            f"{norm2}/bias": (d,),
            f"{mlp}/Dense_0/kernel": (d, m),
            f"{mlp}/Dense_0/bias": (m,),
            f"{mlp}/Dense_1/kernel": (m, d),
            f"{mlp}/Dense_1/bias": (d,),
        }
        shapes |= {f"Transformer/encoderblock_{i}/{k}": v for k, v in block.items()}
    shapes |= {
        "Transformer/encoder_norm/scale": (d,),
        "Transformer/encoder_norm/bias": (d,),
    }
    if pre_logits:
        shapes |= {
            "pre_logits/kernel": (d, pre_logits),
            "pre_logits/bias": (pre_logits,),
        }
    if num_classes:
        shapes |= {
            "head/kernel": (pre_logits or d, num_classes),
            "head/bias": (num_classes,),
        }
    return shapes


def _mixer(*, width=16, tokens=4, hidden=6, mlp_dim=24, depth=2, num_classes=5):
    d = width
    shapes = {"stem/kernel": (4, 4, 3, d), "stem/bias": (d,)}
    for i in range(depth):
        block = {
            "LayerNorm_0/scale": (d,),
            "LayerNorm_0/bias": (d,),
            "token_mixing/Dense_0/kernel": (tokens, hidden),
            "token_mixing/Dense_0/bias": (hidden,),
            "token_mixing/Dense_1/kernel": (hidden, tokens),
            "token_mixing/Dense_1/bias": (tokens,),
            "LayerNorm_1/scale": (d,),
            "LayerNorm_1/bias": (d,),
            "channel_mixing/Dense_0/kernel": (d, mlp_dim),
            "channel_mixing/Dense_0/bias": (mlp_dim,),
            "channel_mixing/Dense_1/kernel": (mlp_dim, d),
            "channel_mixing/Dense_1/bias": (d,),
        }
        shapes |= {f"MixerBlock_{i}/{k}": v for k, v in block.items()}
    shapes |= {"pre_head_layer_norm/scale": (d,), "pre_head_layer_norm/bias": (d,)}
    return shapes | {"head/kernel": (d, num_classes), "head/bias": (num_classes,)}


def _old_mixer(**sizes):
    """Lists {name: (shape, newer name)} of `_mixer` in the oldest layout."""
    renames = [
        ("stem/", "embedding/"),
        ("pre_head_layer_norm/", "Mixer/encoder_norm/"),
        ("MixerBlock_", "Mixer/encoderblock_"),
        ("mixing/Dense_0/kernel", "mixing_phase_0/kernel1"),
        ("mixing/Dense_0/bias", "mixing_phase_0/bias1"),
        ("mixing/Dense_1/kernel", "mixing_phase_0/kernel2"),
        ("mixing/Dense_1/bias", "mixing_phase_0/bias2"),
    ]
    layout = {}
    for newer, shape in _mixer(**sizes).items():
        name = newer
        for before, after in renames:
            name = name.replace(before, after)
        layout[name] = ((1, *shape) if "_phase_0" in name else shape, newer)
    return layout
