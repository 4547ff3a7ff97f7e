"""Models with LoRA adapters: used, merged, and written to files."""

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import convert
from vit_jax.errors import UserError
from vit_jax.models import abstract_params
from vit_jax.models.adapters import merged_lora
from vit_jax.weights.base import checksum
from vit_jax.weights.loading import load_weights
from vit_jax.weights.saving import save_weights

LORA = {
    "lora_rank": 3,
    "lora_alpha": 6.0,
    "lora_targets": ("query", "value", "out", "fc1"),
}


@pytest.fixture
def adapted(make_teacher):
    """Returns a function that writes a whole random model with adapters to a file."""
    return lambda **fields: make_teacher("adapted", **LORA | fields)


@pytest.fixture
def images():
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


def test_merged_equals_unmerged(adapted, images):
    source = adapted()
    model = vit_jax.load(source)
    expected = np.asarray(model(images))
    assert model.architecture.lora_rank == 3
    for merged in (model.merged(), vit_jax.load(source, merge=True)):
        assert merged.architecture.lora_rank == 0
        assert merged.class_names == model.class_names
        params, _ = merged_lora(model.params, model.architecture)
        assert jax.tree.all(jax.tree.map(np.array_equal, merged.params, params))
        assert np.abs(merged(images) - expected).max() <= 1e-6 * np.abs(expected).max()
        assert merged.merged() is merged
    # The adapters matter.
    zeroed = jax.tree.map_with_path(
        lambda path, x: x * (path[-1].key != "lora_b"), model.params
    )
    model.params = zeroed
    assert np.abs(model(images) - expected).max() > 0.1


def test_our_own_file_keeps_the_adapters(adapted, images, tmp_path):
    model = vit_jax.load(adapted())
    again = vit_jax.load(vit_jax.save(model, tmp_path / "again.safetensors"))
    assert again.architecture == model.architecture
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, model.params))


FORMATS = {
    "google": "npz",
    "big_vision": "npz",
    "timm": "safetensors",
    "huggingface": "",
    "torchvision": "safetensors",
    "mmpretrain": "safetensors",
}


@pytest.mark.parametrize("format", FORMATS)
def test_convert_merges_for_formats_without_adapters(
    format, adapted, run_command, tmp_path
):
    fields = {"gelu": "exact"} if format not in ("google", "big_vision") else {}
    source = adapted(**fields)
    target = tmp_path / f"plain.{FORMATS[format]}".rstrip(".")
    arguments = (source, target, f"--to={format}")
    message = r"cannot express this model: LoRA adapters of rank 3 \(add them to"
    with pytest.raises(SystemExit, match=message):
        run_command(convert, *arguments)
    assert not target.exists()
    run_command(convert, *arguments, "--merge")
    weights, found = load_weights(source), load_weights(target, num_heads=2)
    expected, base = merged_lora(weights.params, weights.description.architecture)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params, expected))
    assert found.description.architecture == base


def test_nothing_to_merge_is_said(make_teacher, run_command, tmp_path, caplog):
    target = tmp_path / "plain.npz"
    run_command(convert, make_teacher(), target, "--to=google", "--merge")
    assert "there are no LoRA adapters to merge" in caplog.text
    assert target.exists()


def test_the_checksum_is_of_the_parameters_outside_the_head(make_teacher, tmp_path):
    weights = load_weights(make_teacher())
    a = weights.description.architecture
    found = checksum(weights.params, a)
    as_google = tmp_path / "weights.npz"
    save_weights(*weights, as_google, "google")
    assert checksum(*load_weights(as_google, num_heads=2)[::-1][:1], a) == found
    changed = jax.tree.map(np.copy, weights.params)
    changed["head"]["bias"][0] += 1
    assert checksum(changed, a) == found
    changed["cls"][0, 0, 0] = np.nextafter(changed["cls"][0, 0, 0], np.float32(9))
    assert checksum(changed, a) != found


def test_a_damaged_adapter_is_refused(adapted, tmp_path):
    weights = load_weights(adapted())
    del weights.params["blocks_00"]["mlp"]["fc1"]["lora_a"]
    with pytest.raises(UserError, match="1 missing: blocks_00/mlp/fc1/lora_a"):
        save_weights(*weights, tmp_path / "damaged.safetensors")
    assert (
        "lora_a"
        in abstract_params(weights.description.architecture)["blocks_00"]["mlp"]["fc1"]
    )
