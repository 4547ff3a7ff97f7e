"""The devices to plan for, which may be absent: "v5e:4x4", "h100:8", "cpu"."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.config import Config
from vit_jax.errors import UserError
from vit_jax.host_memory import physical_bytes
from vit_jax.plan.chips import CHIPS, Chip, chip_of

# libtpu reads these when it is loaded. Without a TPU there is no metadata server to
# query and no device to lock; the last two variables silence its warnings about that.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# Chip → an example, for messages.
EXAMPLES = {
    "v3": "v3:2x2 (8 devices)",
    "v4": "v4:2x2x1",
    "v5e": "v5e:4x4",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "h100": "h100:8",
    "a100": "a100:8",
    "a100-40": "a100-40:8 (of 40 GB)",
    "cpu": "cpu",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that programs are compiled for; made by `topology`."""

    name: str
    devices: tuple[Any, ...]  # JAX's
    chip: Chip
    compiler_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def mesh(self, config: Config) -> Mesh:
        """Arranges the devices in the shape of `config.mesh`.

        Args:
          config: any config; other keys are not read.

        Raises:
          UserError: the devices do not fit that shape.
        """
        return sharding.make_mesh(**config.mesh, devices=self.devices)

    @property
    def platform(self) -> str:
        """JAX's name of the platform: "tpu", "gpu" or "cpu"."""
        return self.devices[0].platform

    @property
    def has_estimates(self) -> bool:
        """Whether times can be estimated from the compiler's text: only for TPUs."""
        return self.platform == "tpu" and self.chip.clock > 0

    @property
    def hbm_bytes(self) -> int:
        """Memory per device."""
        return self.chip.hbm_bytes

    @property
    def usable_bytes(self) -> int:
        """Memory per device that one program may use."""
        return self.chip.usable_bytes

    @property
    def peak_flops(self) -> float:
        """Peak rate of bfloat16 products per device, FLOP/s; 0 = unknown."""
        return self.chip.peak_flops

    @property
    def bandwidth(self) -> float:
        """Bandwidth between a device and its memory, bytes/s; 0 = unknown."""
        return self.chip.bandwidth


def topology(name: str = "") -> Topology:
    """Returns the devices of a name.

    Args:
      name: "v5e:4x4" (a TPU slice by its sides, in chips), "h100:8" (GPUs of one
        machine), "cpu" (of this machine); "" = the devices of this process.

    Raises:
      UserError: there are no such devices (lists the known ones), or their compiler is
        not installed (says how to install it).
    """
    chip, _, shape = name.partition(":")
    if name in ("", "cpu"):
        return _local(jax.devices(name or None))
    if chip in _GPUS and re.fullmatch(r"[1-9]\d*", shape):
        return _gpus(name, chip, int(shape))
    if chip in CHIPS and chip not in _GPUS and re.fullmatch(_SLICE, shape):
        return _tpus(name, chip, shape)
    raise _no_such(name)


_SLICE = r"\d+(x\d+){1,2}(_twisted|_untwisted)?"


def _no_such(name: str, reason: str = "") -> UserError:
    return UserError(
        f"--topology={name}: no such devices{reason}. Known are "
        f"{', '.join(EXAMPLES.values())}: TPUs by the sides of the slice, in chips, "
        "GPUs by their number; without --topology those of this machine are used"
    )


def _local(devices: list[Any]) -> Topology:
    first, count = devices[0], len(devices)
    if first.platform == "cpu":
        # Simulated devices share the machine's memory.
        memory = physical_bytes() // count
        name = "cpu" if count == 1 else f"cpu:{count}"
        return Topology(name, tuple(devices), Chip("cpu", memory, memory))
    usable = (first.memory_stats() or {}).get("bytes_limit", 0)
    chip = chip_of(first.device_kind) or Chip(first.device_kind, usable, usable)
    chip = chip._replace(usable_bytes=usable or chip.usable_bytes)
    return Topology(f"{first.device_kind}:{count}", tuple(devices), chip)


def _tpus(name: str, chip: str, shape: str) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the compiler for TPUs, which is not installed: "
            "pip install 'vit_jax[plan]'"
        )
    for variable, value in _NO_TPU.items():
        os.environ.setdefault(variable, value)
    sides = [int(side) for side in shape.partition("_")[0].split("x")]
    options: dict[str, Any] = {
        # A host has 2 × 2 chips, or fewer if the slice is smaller.
        "chips_per_host_bounds": [min(side, 2) for side in sides[:2]] + [1]
    }
    if chip == "v4":
        # On a v4, JAX treats both cores of a chip as one device.
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **options
        )
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise _no_such(name, f" ({reason.rstrip('.')})") from error
    return Topology(name, tuple(found.devices), CHIPS[chip])


# The description of an absent GPU that its compiler needs: compute capability,
# multiprocessors, arithmetic units of each, shared memory of each and of a block that
# opts in, L2 cache (bytes), clock (GHz). Sources: CUDA programming guide, "Compute
# capabilities", and the data sheets.
_GPUS = {
    "h100": ((9, 0), 132, 128, 233_472, 232_448, 50 * 2**20, 1.98),
    "a100": ((8, 0), 108, 64, 167_936, 166_912, 40 * 2**20, 1.41),
    "a100-40": ((8, 0), 108, 64, 167_936, 166_912, 40 * 2**20, 1.41),
}


def _gpus(name: str, chip: str, count: int) -> Topology:
    plugin = next((n for n in ("12", "13") if _has_plugin(n)), "")
    if not plugin:
        raise UserError(
            f"--topology={name} needs the compiler for NVIDIA GPUs, which is not "
            "installed: pip install 'vit_jax[cuda12]' (or [cuda13])"
        )
    row = CHIPS[chip]
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name="gpu",
            target_config=_target_config(chip, row),
            topology=f"1x1x{count}",
        )
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise _no_such(name, f" ({str(error).splitlines()[0]})") from error
    # Autotuning times candidates on a device, which is absent here.
    options = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
    return Topology(name, tuple(found.devices), row, options)


def _has_plugin(version: str) -> bool:
    return importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None


def _target_config(chip: str, row: Chip) -> str:
    """Writes XLA's GpuTargetConfigProto as text."""
    (major, minor), processors, units, shared, block, cache, clock = _GPUS[chip]
    numbers = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_block_optin": block,
        "shared_memory_per_core": shared,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "core_count": processors,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(row.bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": row.hbm_bytes,
    }
    fields = "\n".join(f"  {name}: {value}" for name, value in numbers.items())
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
{fields}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 1 patch: 1 }}
device_description_str: "{row.kind}"
"""
