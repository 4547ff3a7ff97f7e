import os
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vit_jax import host_memory

START = """
import ctypes, resource, sys
from vit_jax.host_memory import in_words, keep_freed_memory
if sys.argv[1:] == ["keep"]:
    keep_freed_memory()
print(in_words())

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""
# Prints the fewest new pages that any of several equal runs touches: a block of 64 MiB
# that is written and freed, and a program with 64 MiB of temporaries.
BLOCKS = """
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
found = []
for _ in range(8):
    before = faults()
    block = ctypes.c_void_p(libc.malloc(2**26))
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
    found.append(faults() - before)
print(min(found))
"""
PROGRAM = """
import jax
import jax.numpy as jnp

@jax.jit
def program(x):
    return jnp.max(x @ x.T, axis=0)

x = jnp.ones((4096, 16))
found = []
for _ in range(8):
    before = faults()
    program(x).block_until_ready()
    found.append(faults() - before)
print(min(found))
"""
PAGES = 2**26 // resource.getpagesize()


def count(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", START + script, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words, pages = done.stdout.splitlines()
    return words, int(pages)


def test_freed_memory_is_used_again():
    words, touched = count(BLOCKS)
    assert (words, touched > PAGES // 2) == ("", True)
    words, touched = count(BLOCKS, "keep")
    assert words.startswith("freed memory is kept")
    assert touched < PAGES // 50


def test_a_program_runs_in_the_memory_of_its_last_run():
    # Newer versions of XLA keep the memory themselves.
    words, touched = count(PROGRAM, "keep")
    assert words.startswith("freed memory is kept")
    assert touched < PAGES // 50


def test_settings_of_the_environment_take_precedence():
    words, touched = count(BLOCKS, "keep", MALLOC_ARENA_MAX="8")
    assert (words, touched > PAGES // 2) == ("", True)


def test_available_and_peak_memory():
    peak, total = host_memory.peak_bytes(), host_memory.physical_bytes()
    assert 2**20 < peak < total
    blocks = np.ones(2**25, np.uint8)
    assert peak <= host_memory.peak_bytes() < total
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    del blocks


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [("cpu", True), ("cuda,cpu", False), ("cpu,cuda", True), ("tpu", False)],
)
def test_freed_memory_is_kept_only_if_the_cpu_computes(
    platforms, expected, monkeypatch
):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert host_memory._the_cpu_computes() == expected


def test_an_installed_accelerator_computes(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    found: dict[str, Any] = {"libtpu": None}
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", found.get)
    monkeypatch.setattr(
        host_memory.importlib.metadata, "entry_points", lambda group: ()
    )
    assert host_memory._the_cpu_computes()
    found["libtpu"] = object()
    assert not host_memory._the_cpu_computes()
