"""JAX's cache of compiled programs, on by default in the commands.

A second start of the same program compiles nothing. The cache is in `vit_jax.cache`'s
folder. JAX's own variables take precedence: JAX_COMPILATION_CACHE_DIR names another
folder, and JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. Importing vit_jax
changes no setting.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import platform
import tempfile

from vit_jax.cache import cache_dir

logger = logging.getLogger(__name__)

# JAX's settings and the commands' values, unless the environment says otherwise.
_SETTINGS = {
    # Cache every program: hundreds of small ones take as long as a large one.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    # Beyond this size, the least recently used programs are removed.
    "jax_compilation_cache_max_size": 8 * 2**30,
}


def use_compilation_cache() -> None:
    """Turns the cache on for this process; logs it if the folder is not writable."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is not None:
        return
    folder = cache_dir() / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        logger.info(
            "compiled programs are not cached: %s cannot be written (%s)",
            folder,
            error.strerror,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _machine() -> str:
    """Returns a name shared by machines with the same processor.

    CPU programs use all of a processor's instructions, and machines with different
    processors may share a home directory.
    """
    text = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features", "model name")):
                text += line
                if line.startswith(("flags", "Features")):
                    break
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
