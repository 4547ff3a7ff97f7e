"""The memory of the host: how much there is, what was used, and that it is used again.

XLA allocates a program's temporary arrays anew in every step, and the C library hands
blocks of that size back to the system: each step then waits for hundreds of MiB of
fresh, zeroed pages (docs/performance.md has what it costs). Only the commands change
this, and only where the CPU computes; importing vit_jax changes no setting.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

import psutil

# Parameters of mallopt(3), their numbers in glibc's malloc.h, and what they are set to.
_SETTINGS = {
    "M_ARENA_MAX": (-8, 1),  # XLA's threads take from the one heap that can be large
    "M_MMAP_MAX": (-4, 0),  # and no block is a mapping of its own
    "M_TRIM_THRESHOLD": (-1, -1),  # nor is the heap's end ever given back
}
_kept = False


def physical_bytes() -> int:
    """How much memory this machine has."""
    return psutil.virtual_memory().total


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # which only POSIX has

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Keeps what this process frees; call it before JAX has made its devices.

    Does nothing where an accelerator computes, with other C libraries than glibc, and
    where the environment has settings of malloc: GLIBC_TUNABLES or MALLOC_….
    """
    global _kept
    own = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUN"))]
    if own or sys.platform != "linux" or not _the_cpu_computes():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    _kept = bool(mallopt) and all(mallopt(*values) for values in _SETTINGS.values())


def in_words() -> str:
    """What has been done, for the summary of a run; empty = nothing."""
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
