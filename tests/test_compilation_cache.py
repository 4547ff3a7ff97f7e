import os
import subprocess
import sys

import pytest

from vit_jax import compilation_cache
from vit_jax.compilation_cache import use_compilation_cache

COUNTING = """
import collections, sys
import jax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
from vit_jax import main
try:
    main.main()
finally:
    print(*(events[f"/jax/compilation_cache/cache_{x}"] for x in ("misses", "hits")))
"""


def test_the_second_start_compiles_nothing(tmp_path, tiny_recipe):
    values = {"total_steps": 1, "augment.train": "resize", "model.depth": 1}
    tiny_recipe(tmp_path, **values)
    environment = dict(os.environ, VIT_JAX_CACHE=str(tmp_path / "cache"))
    environment.pop("JAX_COMPILATION_CACHE_DIR")

    def start(workdir):
        flags = ["--config=recipe.py", f"--workdir={workdir}"]
        done = subprocess.run(
            [sys.executable, "-c", COUNTING, *flags],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [int(count) for count in done.stdout.split()]

    compiled, found = start("first")
    assert compiled > 0
    assert found == 0
    [folder] = (tmp_path / "cache/compiled").iterdir()
    programs = sorted(folder.glob("*-cache"))
    assert len(programs) == compiled
    # One entry was cut short by a full disk, one is empty: both are compiled again.
    programs[0].write_bytes(programs[0].read_bytes()[:-20])
    programs[1].write_bytes(b"")
    assert start("second") == [2, compiled - 2]


@pytest.fixture
def updates(monkeypatch, tmp_path):
    """Records updates of JAX's configuration without applying them."""
    import jax

    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    return found


def test_location_and_size_limit(updates, tmp_path):
    use_compilation_cache()
    folder = updates.pop("jax_compilation_cache_dir")
    assert folder.startswith(str(tmp_path / "cache/compiled"))
    assert os.path.isdir(folder)
    assert updates == compilation_cache._SETTINGS


def test_environment_variables_take_precedence(updates, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1000")
    use_compilation_cache()
    assert set(updates) == {
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    }
    updates.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    use_compilation_cache()
    assert updates == {}


def test_an_unwritable_folder_is_not_an_error(updates, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "cache").touch()
    use_compilation_cache()
    assert updates == {}
    assert "compiled programs are not cached" in caplog.text
