"""The device mesh, and how parameters and batches lie on it.

Nothing else in the package knows how many devices there are.
"""

import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError


def make_mesh(data: int = -1) -> Mesh:
    """A mesh with the one axis `data`, over which batches are spread.

    Args:
      data: number of devices to use; −1 = all of them.

    Raises:
      UserError: there are fewer devices than asked for.
    """
    devices = jax.devices()
    if data == -1:
        data = len(devices)
    if not 1 <= data <= len(devices):
        raise UserError(
            f"mesh.data={data}, but there are {len(devices)} "
            f"{devices[0].platform} devices; pass a number from 1 to {len(devices)}, "
            "or -1 for all of them."
        )
    return jax.make_mesh(
        (data,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:data]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def microbatch_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays [accum, b, ...]: each microbatch is spread over all the devices."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves this process's rows of a batch to its devices, as one global batch.

    The copy is asynchronous, so the next batch travels while a step runs.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


# PCI identity of accelerators: vendor, and the devices of that vendor that are not
# network cards and the like (None = any display or 3-D controller).
_PCI_ACCELERATORS = {
    "0x10de": ("an NVIDIA GPU", "pip install 'vit_jax[cuda13]' (or [cuda12])", None),
    "0x1ae0": (
        "a Google TPU",
        "pip install 'vit_jax[tpu]'",
        {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"},
    ),
}


def refuse_idle_accelerator(pci_devices: str = "/sys/bus/pci/devices") -> None:
    """Stops a run that would use the CPU although the machine has an accelerator.

    JAX itself falls back to the CPU with a warning, and training is a hundred times
    slower. Setting JAX_PLATFORMS=cpu says that the CPU is meant.

    Raises:
      UserError: names the accelerator and the line that installs its support.
    """
    if jax.default_backend() != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return
    for device in pathlib.Path(pci_devices).glob("*"):
        vendor, model, kind = (
            (device / name).read_text().strip()
            for name in ("vendor", "device", "class")
        )
        if vendor not in _PCI_ACCELERATORS:
            continue
        name, install, models = _PCI_ACCELERATORS[vendor]
        if model in models if models else kind.startswith("0x03"):
            raise UserError(
                f"this machine has {name}, but JAX found only the CPU. Install its "
                f"support: {install}. To train on the CPU all the same, pass "
                "--config.allow_cpu=true or set JAX_PLATFORMS=cpu."
            )
