"""Published specifications of accelerators, per device."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One device, as JAX counts devices; unknown numbers are 0."""

    kind: str  # prefix of JAX's `device_kind`
    hbm_bytes: int  # size of the main memory
    usable_bytes: int  # main memory available to one program
    peak_flops: float = 0.0  # bfloat16 products, FLOP/s
    bandwidth: float = 0.0  # of the main memory, bytes/s
    # Only for platforms with estimates of time. The clock is the one at which the
    # matrix units reach the peak; kernels are divided among the cores of a device.
    clock: float = 0.0  # Hz
    cores: int = 1


def _chip(kind: str, gib: float, usable_gib: float, *more: float, cores=1) -> Chip:
    return Chip(kind, int(gib * GIB), int(usable_gib * GIB), *more, cores=cores)


# Sources: cloud.google.com/tpu/docs, "System architecture" of each version; data sheets
# of NVIDIA H100 and A100 (SXM, dense products). A device of TPU v3 is one of the chip's
# two cores, with half of the chip's resources. Usable memory of TPUs is the limit in
# the compiler's error (libtpu 0.0.52) for a program that is too large; of GPUs, three
# quarters of the memory, JAX's default.
CHIPS = {
    "v3": _chip("TPU v3", 16, 15.48, 61.5e12, 450e9, 0.94e9),
    "v4": _chip("TPU v4", 32, 30.75, 275e12, 1228e9, 1.05e9, cores=2),
    "v5e": _chip("TPU v5 lite", 16, 15.75, 197e12, 819e9, 1.5e9),
    "v5p": _chip("TPU v5", 95, 95.73, 459e12, 2765e9, 1.75e9, cores=2),
    "v6e": _chip("TPU v6 lite", 32, 31.24, 918e12, 1640e9, 1.75e9),
    "h100": _chip("NVIDIA H100", 80, 60, 989e12, 3350e9),
    "a100": _chip("NVIDIA A100-SXM4-80GB", 80, 60, 312e12, 2039e9),
    "a100-40": _chip("NVIDIA A100-SXM4-40GB", 40, 30, 312e12, 1555e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the row of CHIPS for a device kind; None if there is none."""
    rows = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    # "TPU v5 lite" also begins with "TPU v5".
    return max(rows, key=lambda chip: len(chip.kind), default=None)
