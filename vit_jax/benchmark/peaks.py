"""The most that devices can do: by their data sheet, or measured with one product."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

# How JAX's `device_kind` begins → dense FLOP/s of a device with bfloat16 operands.
# Sources: cloud.google.com/tpu/docs, "System architecture" of each version; NVIDIA's
# data sheets (SXM). A device of TPU v2 and v3 is one of the chip's two cores.
DATA_SHEETS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
_SIZE = {"cpu": 2048}  # rows and columns of the measured product, by platform
_ROUNDS = 5


def matmul_peak(mesh: Mesh, dtype: Any) -> tuple[float, str]:
    """FLOP/s of matrix products that the devices of a mesh can reach together.

    Args:
      mesh: the devices.
      dtype: of the model's products. Data sheets are for bfloat16, in which TPUs also
        compute products of float32.

    Returns:
      The rate and where it comes from: "data sheet" or "measured".
    """
    device = mesh.devices.flat[0]
    rows = [kind for kind in DATA_SHEETS if device.device_kind.startswith(kind)]
    known = device.platform == "tpu" or jnp.dtype(dtype) == jnp.bfloat16
    if rows and known:
        # "TPU v5 lite" begins like "TPU v5" as well.
        return DATA_SHEETS[max(rows, key=len)] * mesh.size, "data sheet"
    # All devices of a CPU are the same cores.
    count = 1 if device.platform == "cpu" else mesh.size
    return measured_matmul(device, dtype) * count, "measured"


def measured_matmul(device: Any, dtype: Any) -> float:
    """FLOP/s of one square matrix product on a device, the median of a few."""
    size = _SIZE.get(device.platform, 8192)
    with jax.default_device(device):
        keys = jax.random.split(jax.random.key(0))
        left, right = (jax.random.normal(key, (size, size), dtype) for key in keys)
        product = jax.jit(jnp.matmul).lower(left, right).compile()
        product(left, right).block_until_ready()
        seconds = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            product(left, right).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)
