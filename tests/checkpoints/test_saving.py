import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec
from orbax.checkpoint._src.path import atomicity

from vit_jax import sharding
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.reading import (
    has_checkpoint,
    load_checkpoint,
    load_description,
    load_params,
)
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models.architecture import Architecture


def describe(step):
    architecture = Architecture.from_variant(
        "Ti/16", image_size=(32, 48), num_classes=2
    )
    preprocessing = Preprocessing(image_size=(32, 48), eval_transform="resize")
    config = {"image_size": (32, 48), "lr": 0.1}
    return Description(architecture, preprocessing, ("cat", "dog"), config, step)


def make_params(depth=2, scale=1.0):
    key = jax.random.key(3)
    params = {
        f"blocks_{i:02d}": {
            "kernel": scale * jax.random.normal(jax.random.fold_in(key, i), (16, 8)),
            "bias": jnp.full(8, i, jnp.bfloat16),
        }
        for i in range(depth)
    }
    return {**params, "cls": jnp.full((1, 1, 8), jnp.float32(1 / 3))}


def make_optimizer():
    """Builds an optimizer with chains, masks, empty states and bfloat16 moments."""
    matrices = lambda params: jax.tree.map(lambda x: x.ndim == 2, params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda t: 1e-3, mask=matrices, mu_dtype=jnp.bfloat16),
        optax.masked(optax.trace(0.9), matrices),
    )


def make_state(depth=2):
    params, optimizer = make_params(depth), make_optimizer()
    grads = jax.tree.map(lambda x: jnp.sin(7 * x), params)
    _, opt_state = optimizer.update(grads, optimizer.init(params), params)
    return params, opt_state


def abstract(tree, where):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)), tree
    )


def on_one(x):
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def items(params, opt_state):
    return {"params": params, "optimizer": opt_state}


def assert_identical(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(workdir, *steps, keep=5):
    params, opt_state = make_state()
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, items(params, opt_state), describe(step))
    return params, opt_state


def run_child(code, *arguments, timeout=120, **environment):
    """Runs `code` in a child process, with this module's helpers as `t`."""
    prelude = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('t', {__file__!r})\n"
        "t = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(t)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_round_trip_is_bit_exact(tmp_path):
    params, opt_state = save(tmp_path, 7)
    assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(opt_state))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest_step() == 7
        targets = items(abstract(params, on_one), abstract(opt_state, on_one))
        found = checkpoints.restore(7, targets)
    assert_identical(found.items, items(params, opt_state))
    assert found.description == describe(7) == load_description(tmp_path)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (8, 4), (1, 8)])
def test_restores_onto_other_devices(tmp_path, before, after):
    def rows(devices):
        mesh = sharding.make_mesh(devices)
        spread = jax.NamedSharding(mesh, PartitionSpec("data"))
        return lambda x: spread if x.ndim == 2 else sharding.replicated(mesh)

    state = make_state()
    spread = jax.tree.map(lambda x: jax.device_put(x, rows(before)(x)), state)
    assert len(spread[0]["blocks_00"]["kernel"].sharding.device_set) == before
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, items(*spread), describe(1))
        targets = abstract(state, rows(after))
        found = checkpoints.restore(1, items(*targets))
    assert_identical(found.items, items(*state))
    for x, target in zip(
        jax.tree.leaves(found.items), jax.tree.leaves(items(*targets)), strict=True
    ):
        assert x.sharding == target.sharding


def test_params_alone_need_neither_devices_nor_optimizer(tmp_path):
    params, opt_state = save(tmp_path, 1, 2)
    for file in (tmp_path / "checkpoints/2/optimizer").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    found = load_params(tmp_path)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(found))
    assert_identical(found, params)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        targets = abstract((params, opt_state), on_one)
        with pytest.raises(UserError, match=r"checkpoints/2 is damaged"):
            checkpoints.restore(2, items(*targets))


def test_one_device_loads_what_eight_devices_saved(tmp_path):
    params = make_params()
    spread = sharding.batch_sharding(sharding.make_mesh(8))
    kernel = jax.device_put(params["blocks_01"]["kernel"], spread)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(
            4, items({"kernel": kernel}, optax.sgd(0.1).init({})), describe(4)
        )
    code = (
        "import jax; assert len(jax.devices()) == 1\n"
        "kernel = t.load_params(sys.argv[1])['kernel']\n"
        "print(kernel.tobytes().hex(), t.load_description(sys.argv[1]).step)\n"
    )
    child = run_child(
        code, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=1"
    )
    assert child.stdout.split() == [np.asarray(kernel).tobytes().hex(), "4"]
    assert child.stderr == ""


def test_another_depth_is_refused_with_the_missing_names(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        opt_state = optax.sgd(0.1).init({})
        checkpoints.save(1, items(make_params(depth=12), opt_state), describe(1))
        deeper = abstract(make_params(depth=16), on_one)
        with pytest.raises(UserError) as error:
            checkpoints.restore(1, items(deeper, opt_state))
    message = str(error.value)
    assert "8 missing: params/blocks_12/bias, params/blocks_12/kernel" in message
    assert "unexpected" not in message


def test_another_optimizer_is_refused(tmp_path):
    params, opt_state = save(tmp_path, 1)
    float32 = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, opt_state
    )
    plain = optax.sgd(0.1, momentum=0.9).init(params)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(UserError, match=r"different: optimizer/1/0/mu/.*float32"):
            checkpoints.restore(1, items(*abstract((params, float32), on_one)))
        with pytest.raises(UserError, match="missing: optimizer/0/trace"):
            checkpoints.restore(1, items(*abstract((params, plain), on_one)))


def test_arrays_may_be_donated_while_they_are_saved(tmp_path, monkeypatch):
    commit = threading.Event()
    hold_commits(monkeypatch, commit, "1")
    params, opt_state = jax.tree.map(lambda x: x + 0, make_state())
    expected = jax.tree.map(np.array, (params, opt_state))
    step = jax.jit(
        lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0
    )
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, items(params, opt_state), describe(1))
        later = (params, opt_state)
        for _ in range(3):
            later = jax.block_until_ready(step(later))
        assert not has_checkpoint(tmp_path)
        commit.set()
        checkpoints.wait()
        found = checkpoints.restore(1, items(*abstract(later, on_one)))
    assert_identical(found.items, items(*expected))


def hold_commits(monkeypatch, event, name):
    """Holds the rename that completes checkpoint `name` until the event is set."""
    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def held(self):
        if self.get_final().name == name:
            assert event.wait(60)
        await finalize(self)

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", held)


def test_old_checkpoints_stay_until_the_new_one_is_complete(tmp_path, monkeypatch):
    commit = threading.Event()
    hold_commits(monkeypatch, commit, "3")
    params, opt_state = make_state()
    folder = tmp_path / "checkpoints"
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, items(params, opt_state), describe(1))
        checkpoints.save(2, items(params, opt_state), describe(2))
        checkpoints.wait()
        assert [p.name for p in folder.iterdir()] == ["2"]
        checkpoints.save(3, items(params, opt_state), describe(3))  # does not wait
        time.sleep(0.3)
        assert checkpoints.latest_step() == 2
        assert sum(p.name.isdecimal() for p in folder.iterdir()) == 1
        assert load_description(tmp_path).step == 2
        commit.set()
    assert [p.name for p in folder.iterdir()] == ["3"]


def test_keeps_the_newest(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    # Sorted as numbers, not as text; checkpoints of an earlier process count too.
    save(tmp_path, 10, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "4"]
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_a_saved_step_is_saved_once(tmp_path):
    save(tmp_path, 5)
    before = (tmp_path / "checkpoints/5/params/_METADATA").stat().st_mtime_ns
    save(tmp_path, 5)
    assert (tmp_path / "checkpoints/5/params/_METADATA").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="step 4 is older than the saved step 5"):
        save(tmp_path, 4)


KILL = """
import asyncio, os, signal
from orbax.checkpoint._src.path import atomicity
from orbax.checkpoint._src.serialization import ocdbt_utils
workdir, point = sys.argv[1:]
params, opt_state = t.make_state()
checkpoints = t.Checkpoints(workdir, keep=1)
checkpoints.save(1, t.items(params, opt_state), t.describe(1))
checkpoints.wait()
def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
if point == "arrays":
    ocdbt_utils.merge_ocdbt_per_process_files = kill
else:
    finalize = atomicity.AtomicRenameTemporaryPath.finalize
    async def at_the_rename(self):
        if self.get_final().name == "2":
            kill()
        await finalize(self)
    atomicity.AtomicRenameTemporaryPath.finalize = at_the_rename
checkpoints.save(2, t.items(params, opt_state), t.describe(2))
checkpoints.wait()
"""


@pytest.mark.parametrize("point", ["arrays", "rename"])
def test_a_killed_save_leaves_the_checkpoint_before_it(tmp_path, point):
    child = run_child(KILL, tmp_path, point)
    assert child.returncode == -signal.SIGKILL, child.stderr
    folder = tmp_path / "checkpoints"
    assert len(list(folder.glob("2*tmp*"))) == 1  # it was in flight
    assert load_description(tmp_path).step == 1
    params, opt_state = make_state()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert [p.name for p in folder.iterdir()] == ["1"]
        assert checkpoints.latest_step() == 1
        found = checkpoints.restore(1, items(*abstract((params, opt_state), on_one)))
        assert_identical(found.items, items(params, opt_state))
        checkpoints.save(2, items(params, opt_state), describe(2))
    assert load_description(tmp_path).step == 2


DISK_FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
workdir, = sys.argv[1:]
state = t.make_state()
large = {"noise": t.jax.random.normal(t.jax.random.key(0), (300, 300))}
small = {"count": t.jnp.zeros(())}
checkpoints = t.Checkpoints(workdir, keep=1)
checkpoints.save(1, t.items(*state), t.describe(1))
checkpoints.wait()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
checkpoints.save(2, t.items(large, small), t.describe(2))
try:
    checkpoints.save(3, t.items(*state), t.describe(3))
except t.UserError as error:
    print(error)
print(checkpoints.latest_step())
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
checkpoints.save(4, t.items(large, small), t.describe(4))
checkpoints.wait()
print(checkpoints.latest_step())
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
try:
    with checkpoints:
        checkpoints.save(5, t.items(large, small), t.describe(5))
except t.UserError as error:
    print(error)
checkpoints.close()
try:
    with t.Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(5, t.items(large, small), t.describe(5))
        raise KeyError("the reason that counts")
except KeyError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("where", "shown"),
    [("site-packages/orbax/checkpoint/store.py", 0), ("notebook/other.py", 1)],
)
def test_only_abandoned_writes_of_orbax_are_silenced(caplog, where, shown):
    logging.getLogger("asyncio").error(
        "Task exception was never retrieved\n"
        "future: <Task finished coro=<write() done, defined at /lib/%s:180> "
        "exception=OSError(27, 'File too large')>",
        where,
    )
    assert len(caplog.records) == shown


def test_a_full_disk_is_reported_and_the_last_good_checkpoint_survives(tmp_path):
    child = run_child(DISK_FULL, tmp_path)
    assert child.returncode == 0, child.stderr
    assert "Traceback" not in child.stderr
    folder = tmp_path / "checkpoints"
    first, after, mended, last, reason = child.stdout.splitlines()
    assert first == (
        "checkpoint at step 2 was not saved (File too large); the last good one is "
        f"step 1 at {folder}/1. Fix that and run the same command again to continue "
        "from there."
    )
    assert after == "1"
    assert mended == "4"
    assert last.startswith("checkpoint at step 5 was not saved (File too large); ")
    assert reason == "'the reason that counts'"
    assert [p.name for p in folder.iterdir()] == ["4"]
    assert load_params(tmp_path)["noise"].shape == (300, 300)


def test_leaving_the_block_completes_the_save_and_the_process_ends(tmp_path):
    code = (
        "with t.Checkpoints(sys.argv[1], keep=1) as checkpoints:\n"
        "    checkpoints.save(1, t.items(*t.make_state()), t.describe(1))\n"
        "    sys.exit(3)\n"
    )
    child = run_child(code, tmp_path, timeout=60)
    assert child.returncode == 3
    assert child.stderr == ""
    assert load_description(tmp_path).step == 1


def test_relative_work_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, _ = save("out", 1)
    assert_identical(load_params("out"), params)
    assert load_description("./out", step=1).step == 1
    assert (tmp_path / "out/checkpoints/1").is_dir()


def test_other_folders_are_refused_with_their_content(tmp_path):
    assert not has_checkpoint(tmp_path / "nothing")
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    (tmp_path / "started").mkdir()
    (tmp_path / "started/config.json").write_text("{}")
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    expected = {
        "nothing": "is not a work directory: it does not exist",
        "file": "it is a file",
        "photos": "it holds a.jpg, but no folder named checkpoints",
        "started": "a run was started in it, but has saved nothing yet",
        "empty": "no complete checkpoint",
    }
    for name, text in expected.items():
        for load in (load_description, load_params):
            with pytest.raises(UserError, match=text):
                load(tmp_path / name)
    save(tmp_path / "run", 3, 6)
    with pytest.raises(UserError, match="at step 5; there are checkpoints at 3, 6"):
        load_params(tmp_path / "run", step=5)
    with pytest.raises(UserError, match="cannot be written to"):
        Checkpoints(tmp_path / "file", keep=1)


def test_damage_is_named(tmp_path):
    # One array only: if several cannot be read, the first error ends the event loop to
    # which TensorStore's threads then report the others.
    state = {"kernel": jnp.ones(8)}, optax.sgd(0.1).init({})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, items(*state), describe(1))
        checkpoints.save(2, items(*state), describe(2))
    for data in (tmp_path / "checkpoints/2/params").rglob("d/*"):
        data.write_bytes(b"")
    (tmp_path / "checkpoints/2/metadata/metadata").write_text("{")
    # First with checksums, then without.
    for _ in range(2):
        with pytest.raises(UserError, match="checkpoints/2 is damaged"):
            load_params(tmp_path, step=2)
        with pytest.raises(UserError, match="checkpoints/2 is damaged"):
            load_description(tmp_path, step=2)
        assert load_description(tmp_path, step=1).step == 1
        (tmp_path / "checkpoints/2/MANIFEST.json").unlink(missing_ok=True)


def damage(file):
    """Flips one bit of the second to last byte."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 4
    file.write_bytes(content)


def test_the_newest_undamaged_checkpoint_is_used(tmp_path, caplog):
    params, opt_state = save(tmp_path, 1, 2, 3)
    folder = tmp_path / "checkpoints"
    damage(folder / "3/params/_METADATA")
    damage(next((folder / "2/optimizer/d").iterdir()))
    # A reader looks for damage only in the parts that it reads, and changes nothing.
    assert load_description(tmp_path).step == 3
    assert_identical(load_params(tmp_path), params)
    assert load_checkpoint(tmp_path)[0].step == 2
    assert "checkpoints/3 is damaged (params/_METADATA has changed" in caplog.text
    assert "Using the one before it, step 2" in caplog.text
    assert sorted(os.listdir(folder)) == ["1", "2", "3"]
    caplog.clear()
    targets = abstract((params, opt_state), on_one)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(UserError, match="checkpoints/3 is damaged"):
            checkpoints.restore(3, items(*targets))
        found = checkpoints.restore_newest(items(*targets))
        assert_identical(found.items, items(params, opt_state))
        assert found.description.step == checkpoints.latest_step() == 1
        assert "2 is damaged (optimizer/d/" in caplog.text
        assert "moved to" in caplog.text
        assert sorted(os.listdir(folder)) == ["1", "2.damaged", "3.damaged"]
        # The steps can be saved again; damaged checkpoints do not count towards `keep`.
        checkpoints.save(2, items(params, opt_state), describe(2))
        checkpoints.wait()
    assert sorted(os.listdir(folder)) == ["1", "2", "2.damaged", "3.damaged"]


def test_without_an_undamaged_checkpoint_nothing_is_restored_or_moved(tmp_path):
    params, opt_state = save(tmp_path, 1, 2)
    for step in (1, 2):
        damage(tmp_path / f"checkpoints/{step}/params/_sharding")
    targets = abstract((params, opt_state), on_one)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(UserError, match=r"All checkpoints in .* are da") as error:
            checkpoints.restore_newest(items(*targets))
        assert str(error.value).count("is damaged (params/_sharding") == 2
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]


def test_running_out_of_memory_does_not_count_as_damage(tmp_path, monkeypatch):
    params, opt_state = save(tmp_path, 1, 2)

    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "restore", full)
        with pytest.raises(jax.errors.JaxRuntimeError):
            checkpoints.restore_newest(items(*abstract((params, opt_state), on_one)))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]


def test_the_best_checkpoint_is_kept(tmp_path):
    state = {"kernel": jnp.ones(8)}, optax.sgd(0.1).init({})
    with Checkpoints(tmp_path, keep=1, best="loss", better=-1.0) as checkpoints:
        assert checkpoints.best_step() is None
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 1.0)):
            checkpoints.note(step, {"loss": loss})
            assert checkpoints.is_best(step) == (step in (1, 2))
            checkpoints.save(step, items(*state), describe(step))
        checkpoints.save(5, items(*state), describe(5))  # not evaluated
        checkpoints.wait()
        assert checkpoints.best_step() == 2
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "5"]


def test_an_inaccessible_checkpoint_is_not_called_damaged(tmp_path, monkeypatch):
    state = {"kernel": jnp.ones(8)}, optax.sgd(0.1).init({})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, items(*state), describe(1))
    closed = tmp_path / "checkpoints/1/params"
    for data in closed.rglob("d/*"):
        data.write_bytes(b"")  # damage that the message must not mention

    def access(path, mode):
        return not str(path).startswith(str(closed))  # permissions do not bind root

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(UserError, match="is not accessible to this user") as error:
        load_params(tmp_path)
    assert str(closed) in str(error.value)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("in_its_place", ["nothing", "a file"])
def test_a_vanished_folder_is_reported_and_not_created(tmp_path, in_its_place):
    state = {"kernel": jnp.ones(8)}, optax.sgd(0.1).init({})
    folder = tmp_path / "run/checkpoints"
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        checkpoints.save(1, items(*state), describe(1))
        checkpoints.wait()
        shutil.move(folder, tmp_path / "away")
        if in_its_place == "a file":
            folder.touch()
        with pytest.raises(UserError, match=r"run/checkpoints has vanished\)"):
            checkpoints.save(2, items(*state), describe(2))
    assert not folder.is_dir()
    assert os.listdir(tmp_path / "away") == ["1"]
