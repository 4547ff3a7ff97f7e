"""Finds accelerators that the machine has and JAX does not use."""

import os
import pathlib
from collections.abc import Iterator

import jax

from vit_jax.errors import UserError

# PCI vendor of accelerators → name, how to install support, and the vendor's devices
# that are not network cards and the like (None = any display or 3-D controller).
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
    slower. JAX_PLATFORMS=cpu chooses the CPU on purpose.

    Raises:
      UserError: names the accelerator and the command that installs its support.
    """
    if jax.default_backend() != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return
    for name, install in accelerators(pci_devices):
        raise UserError(
            f"this machine has {name}, but JAX found only the CPU. Install its "
            f"support: {install}. To train on the CPU anyway, pass "
            "--config.allow_cpu=true or set JAX_PLATFORMS=cpu."
        )


def accelerators(
    pci_devices: str = "/sys/bus/pci/devices",
) -> Iterator[tuple[str, str]]:
    """Finds the machine's accelerators and how to install support, without JAX."""
    for device in pathlib.Path(pci_devices).glob("*"):
        vendor, model, kind = (
            (device / name).read_text().strip()
            for name in ("vendor", "device", "class")
        )
        if vendor not in _PCI_ACCELERATORS:
            continue
        name, install, models = _PCI_ACCELERATORS[vendor]
        if model in models if models else kind.startswith("0x03"):
            yield name, install
