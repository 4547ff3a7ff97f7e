"""Tests of topologies: the requests to compilers, and errors."""

import importlib.util

import jax
import pytest
from jax.experimental import topologies as jax_topologies

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.plan import topology
from vit_jax.plan.chips import CHIPS, GIB, chip_of
from vit_jax.plan.topologies import _NO_TPU


class Found:
    """A topology description with the CPU's devices."""

    def __init__(self):
        self.devices = jax.devices()[:4]


@pytest.fixture
def asked(monkeypatch):
    """Collected requests to compilers, all installed, answered with four CPUs."""
    calls = []

    def get(topology_name="", platform=None, **options):
        calls.append((platform, topology_name, options))
        return Found()

    monkeypatch.setattr(jax_topologies, "get_topology_desc", get)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    # Removes the variables set for libtpu after the test.
    for variable, value in _NO_TPU.items():
        monkeypatch.setenv(variable, value)
    return calls


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v5e:4x4", {"chips_per_host_bounds": [2, 2, 1]}),
        ("v5e:1x1", {"chips_per_host_bounds": [1, 1, 1]}),
        ("v6e:2x4", {"chips_per_host_bounds": [2, 2, 1]}),
        ("v3:2x2", {"chips_per_host_bounds": [2, 2, 1]}),
        ("v5p:2x2x4", {"chips_per_host_bounds": [2, 2, 1]}),
        (
            "v4:2x2x1",
            {"chips_per_host_bounds": [2, 2, 1], "chip_config_name": "megacore"},
        ),
        (
            "v4:4x4x8_twisted",
            {"chips_per_host_bounds": [2, 2, 1], "chip_config_name": "megacore"},
        ),
    ],
)
def test_tpu_slices_come_from_libtpu(asked, name, options):
    found = topology(name)
    assert asked == [("tpu", name, options)]
    assert found.name == name and found.devices == tuple(jax.devices()[:4])
    assert found.chip == CHIPS[name.partition(":")[0]]
    assert 0.9 * found.hbm_bytes < found.usable_bytes < 1.01 * found.hbm_bytes


def test_gpus_are_described_to_their_compiler(asked):
    found = topology("a100-40:8")
    ((platform, name, options),) = asked
    assert (platform, name, options["topology"]) == ("cuda", "gpu", "1x1x8")
    text = options["target_config"]
    assert "cuda_compute_capability { major: 8 minor: 0 }" in text
    assert f"device_memory_size: {40 * GIB}\n" in text and "core_count: 108\n" in text
    assert found.usable_bytes == 30 * GIB and found.hbm_bytes == 40 * GIB
    # Nothing is timed on an absent device.
    assert found.compiler_options["xla_gpu_autotune_level"] == 0


@pytest.mark.parametrize(
    "name", ["v9:2x2", "v5e", "v5e:", "v5e:4", "v5e-16", "h100", "h100:0", "cpu:4", "x"]
)
def test_unknown_names_list_the_known_ones(asked, name):
    with pytest.raises(UserError, match=r"no such devices.*v3:2x2.*v5e:4x4.*h100:8"):
        topology(name)
    assert asked == []


def test_impossible_shape_is_refused_with_the_compilers_reason(asked, monkeypatch):
    def get(**_):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: layout not divisible\nmore")

    monkeypatch.setattr(jax_topologies, "get_topology_desc", get)
    expected = r"--topology=v5e:3x3: no such devices \(layout not divisible\). Known"
    with pytest.raises(UserError, match=expected):
        topology("v5e:3x3")


@pytest.mark.parametrize(
    ("name", "install"), [("v5e:2x2", "[plan]"), ("h100:8", "[cuda12]")]
)
def test_error_names_the_missing_compiler(monkeypatch, name, install):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="not installed") as caught:
        topology(name)
    assert f"pip install 'vit_jax{install}'" in str(caught.value)


def test_default_devices_are_those_of_this_process():
    found = topology()
    assert found == topology("cpu")
    assert (found.name, found.devices) == ("cpu:8", tuple(jax.devices()))
    # They share the machine's memory.
    assert 2**26 < found.hbm_bytes < 2**44
    assert not found.has_estimates and found.peak_flops == found.bandwidth == 0


def test_mesh_has_the_topologys_devices(asked):
    config = default_config()
    config.mesh.data, config.mesh.fsdp = 2, -1
    mesh = topology("v5e:2x2").mesh(config)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    assert set(mesh.devices.flat) == set(jax.devices()[:4])
    config.mesh.data = 3
    with pytest.raises(UserError, match="there are 4 cpu devices"):
        topology("v5e:2x2").mesh(config)


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
    ],
)
def test_present_devices_are_recognised_by_their_kind(kind, chip):
    assert chip_of(kind) == CHIPS[chip]
    assert chip_of("NVIDIA Unknown") is None
