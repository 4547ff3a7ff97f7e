import os
import subprocess
import sys
from typing import Any

import pytest

from vit_jax import host_memory

# Prints how many pages the fifth run of a program with 64 MiB of temporaries touches
# for the first time.
COUNTING = """
import resource, sys
from vit_jax.host_memory import in_words, keep_freed_memory
if sys.argv[1:] == ["keep"]:
    keep_freed_memory()
print(in_words())
import jax
import jax.numpy as jnp

@jax.jit
def program(x):
    return jnp.max(x @ x.T, axis=0)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = jnp.ones((4096, 16))
for _ in range(5):
    before = faults()
    program(x).block_until_ready()
print(faults() - before)
"""


def count(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words, pages = done.stdout.splitlines()
    return words, int(pages)


def test_a_program_runs_in_the_memory_of_its_last_run():
    pages = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    words, touched = count()
    assert (words, touched > pages // 2) == ("", True)
    words, touched = count("keep")
    assert words.startswith("freed memory is kept")
    assert touched < pages // 50


def test_settings_of_the_environment_come_first():
    pages = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    words, touched = count("keep", MALLOC_ARENA_MAX="8")
    assert (words, touched > pages // 2) == ("", True)


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [("cpu", True), ("cuda,cpu", False), ("cpu,cuda", True), ("tpu", False)],
)
def test_is_for_the_platform_that_computes(platforms, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert host_memory._the_cpu_computes() == expected


def test_an_installed_accelerator_is_what_computes(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    found: dict[str, Any] = {"libtpu": None}
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", found.get)
    monkeypatch.setattr(
        host_memory.importlib.metadata, "entry_points", lambda group: ()
    )
    assert host_memory._the_cpu_computes()
    found["libtpu"] = object()
    assert not host_memory._the_cpu_computes()
