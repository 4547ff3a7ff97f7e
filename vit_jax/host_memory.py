"""The memory of the host: its size, the peak use, and the reuse of freed memory.

XLA allocates a program's temporary arrays anew in every step, and glibc returns blocks
of that size to the system, so each step waits for fresh, zeroed pages. A CPU training
step of S/16 has 780 MB of temporaries: 200,000 page faults per step, which take 0.34 s
of the two cores' 2.8 s (AMD EPYC, jaxlib 0.10). mallopt(3) makes glibc keep freed
memory: the step then runs at 0.82 of the rate of a 2048³ matrix product, instead of
0.75 to 0.79. jaxlib 0.12.0.1 keeps such memory itself (docs/performance.md).

Only the commands call mallopt, and only if the CPU computes; importing vit_jax changes
no setting.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

import psutil

# Parameters of mallopt(3): their numbers in glibc's malloc.h, and their values.
_SETTINGS = {
    "M_ARENA_MAX": (-8, 1),  # XLA's threads use the one heap that can grow large,
    "M_MMAP_MAX": (-4, 0),  # no block is a separate mapping,
    "M_TRIM_THRESHOLD": (-1, -1),  # and the end of the heap is never returned
}
_kept = False


def physical_bytes() -> int:
    """Returns the size of this machine's memory."""
    return psutil.virtual_memory().total


def peak_bytes() -> int:
    """Returns the peak memory of this process so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # only POSIX has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Keeps the memory that this process frees; call it before JAX makes its devices.

    Does nothing if an accelerator computes, with C libraries other than glibc, or if
    the environment has malloc settings: GLIBC_TUNABLES or MALLOC_….
    """
    global _kept
    own = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUN"))]
    if own or sys.platform != "linux" or not _the_cpu_computes():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    _kept = bool(mallopt) and all(mallopt(*values) for values in _SETTINGS.values())


def in_words() -> str:
    """Describes the change for the summary of a run; "" = nothing was changed."""
    if not _kept:
        return ""
    return "freed memory is kept (MALLOC_ARENA_MAX=8 in the environment prevents it)"


def _the_cpu_computes() -> bool:
    """Whether JAX will choose the CPU; asking JAX itself would start its threads."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(
        importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")
    )
