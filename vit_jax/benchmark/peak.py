"""The peak rate of devices: from their data sheet, or measured with one product."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vit_jax.plan.chips import chip_of

_SIZE = {"cpu": 2048}  # platform → rows and columns of the measured product
_ROUNDS = 5


class Peak:
    """The peak rate of matrix products of all devices of a mesh together.

    Attributes:
      source: "data sheet" or "measured".
    """

    def __init__(self, mesh: Mesh, dtype: Any):
        """Looks up the rate, or measures it.

        Args:
          mesh: the devices.
          dtype: dtype of the model's products. Data sheets are for bfloat16, in which
            TPUs also compute products of float32.
        """
        self._device, self._dtype = mesh.devices.flat[0], jnp.dtype(dtype)
        platform, chip = self._device.platform, chip_of(self._device.device_kind)
        as_stated = platform == "tpu" or self._dtype == jnp.bfloat16
        self._stated = chip.peak_flops if chip and as_stated else 0.0
        self._seconds: list[float] = []
        self.source = "data sheet" if self._stated else "measured"
        # All simulated devices of a CPU share its cores.
        self._devices = 1 if platform == "cpu" else mesh.size
        self.measure()

    @property
    def flops_per_second(self) -> float:
        """Rate of all devices together; if measured, the median."""
        if self._stated:
            return self._stated * self._devices
        return 2 * self._size**3 / statistics.median(self._seconds) * self._devices

    def measure(self) -> None:
        """Times a few square products, unless the data sheet gives the rate."""
        if self._stated:
            return
        size = (self._size, self._size)
        with jax.default_device(self._device):
            keys = jax.random.split(jax.random.key(0))
            operands = [jax.random.normal(key, size, self._dtype) for key in keys]
            product = jax.jit(jnp.matmul).lower(*operands).compile()
            product(*operands).block_until_ready()
            for _ in range(_ROUNDS):
                start = time.perf_counter()
                product(*operands).block_until_ready()
                self._seconds.append(time.perf_counter() - start)

    @property
    def _size(self) -> int:
        return _SIZE.get(self._device.platform, 8192)
