"""Our own single-file format, including descriptions that do not fit the tensors."""

import dataclasses
import json
import time
import tracemalloc

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture, abstract_params
from vit_jax.weights.formats.single_file import as_single_file
from vit_jax.weights.loading import load_weights

# Its file has 25 tensors.
PLAIN = Architecture(
    width=64,
    depth=1,
    mlp_dim=8,
    num_heads=4,
    patch_size=(4, 4),
    image_size=(8, 8),
    num_classes=2,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 1_000_000}, r"with 1,000,000 or more \(1,000,000 blocks"),
        (
            {"trunk": [3000], "patch_size": [4, 4]},
            r"with 27,001 or more .*\(3000,\)",
        ),
        ({"trunk": [25, 25], "patch_size": [8, 8]}, "holds 25 tensors, but"),
        ({"num_classes": 10**18}, r"a tensor of 64,000,000,000,000,000,000\. Use"),
        ({"mlp_dim": 10**30}, r"it holds [0-9,]* numbers in all, .* Use another copy"),
        ({"width": 4 * 10**12}, "a tensor of "),
        ({"image_size": [4, 4 * 10**15]}, r"a tensor of 64,000,000,000,000,000\. Use"),
        ({"registers": 10**12}, "a tensor of "),
        ({"pre_logits": 10**12}, "a tensor of "),
        ({"channels": 10**12}, "a tensor of "),
    ],
)
def test_a_description_of_more_than_the_file_holds_is_refused(
    fields, message, tmp_path
):
    path = _own_file(_weights(PLAIN), fields, tmp_path)
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(UserError, match=message):
        load_weights(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - began < 1
    assert peak < 4_000_000


def test_a_mixers_description_of_more_than_the_file_holds_is_refused(tmp_path):
    sizes = {"width": 16, "depth": 1, "tokens_mlp_dim": 6, "mlp_dim": 24}
    inputs = {"patch_size": (4, 4), "image_size": (8, 8), "num_classes": 5}
    weights = _weights(MixerArchitecture(**sizes, **inputs))
    path = _own_file(weights, {"tokens_mlp_dim": 10**15}, tmp_path)
    with pytest.raises(UserError, match=r"a tensor of 4,000,000,000,000,000\. Use"):
        load_weights(path)
    path = _own_file(weights, {"mlp_dim": 25}, tmp_path)
    with pytest.raises(UserError, match="3 of another shape"):
        load_weights(path)


def test_fixed_positions_of_any_grid_take_no_memory(tmp_path):
    fixed = {"posemb": "sincos2d", "class_token_position": False}
    weights = _weights(dataclasses.replace(PLAIN, **fixed))
    size = [4 * 10**6, 4 * 10**6]
    path = _own_file(weights, {"image_size": size}, tmp_path)
    tracemalloc.start()
    assert load_weights(path).description.architecture.image_size == tuple(size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000


def test_integers_are_written_as_float32(tmp_path):
    description, params = _weights(PLAIN)
    params = params | {"cls": np.full((1, 1, 64), 3)}
    path = _own_file((description, params), {}, tmp_path)
    found = load_weights(path).params["cls"]
    np.testing.assert_array_equal(found, np.full((1, 1, 64), 3, np.float32))


def test_a_contradicting_trained_image_size_is_refused(tmp_path):
    path = _own_file(_weights(PLAIN), {}, tmp_path)
    assert load_weights(path, trained_image_size=(8, 8)).params
    message = r"records that it was trained at \(8, 8\); omit"
    with pytest.raises(UserError, match=message):
        load_weights(path, trained_image_size=(8, 12))


def _weights(architecture):
    params = jax.tree.map(
        lambda x: np.ones(x.shape, np.float32), abstract_params(architecture)
    )
    size = architecture.image_size
    config = to_plain(default_config())
    return Description(architecture, Preprocessing(size), (), config, 0), params


def _own_file(weights, fields, tmp_path):
    """Writes a file whose description has other fields than the weights."""
    arrays, metadata = as_single_file(*weights)
    description = json.loads(metadata["vit_jax"])
    description["architecture"] |= fields
    path = tmp_path / "own.safetensors"
    save_file(arrays, path, {"vit_jax": json.dumps(description)})
    return path
