"""Settings of all tests: eight simulated CPU devices, strict checks; and fixtures."""

import contextlib
import copy
import dataclasses
import gc
import importlib.metadata
import logging
import os
import pathlib
import signal
import sys

# Child processes of the tests inherit all of this from the environment.
os.environ["JAX_PLATFORMS"] = "cpu"
# Eight devices; and no time spent on making programs fast that run for milliseconds.
# (XLA ends the process at a flag it does not know, and the last one may go.)
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1 "
    + "--xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10.")
)
# Many tests and their child processes compile the same small programs.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# No test reaches for the network, or depends on what was downloaded before.
os.environ["VIT_JAX_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = str(pathlib.Path(__file__).parent / "no_such_cache")
os.environ["VIT_JAX_CACHE"] = str(pathlib.Path(__file__).parent / "no_such_cache")

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")

# The shapes in the signatures of the mathematics are checked at every call.
install_import_hook(["vit_jax.models", "vit_jax.objectives"], "beartype.beartype")

# What was traced and compiled stays in memory: to search it for garbage every few
# thousand objects takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)

# The tests and their child processes get the signals of a terminal, also under nohup.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Grain reads absl flags; pytest's own arguments are none of them.
flags.FLAGS(["pytest"])


def pytest_report_header():
    """Reports the versions that the tests run with."""
    from vit_jax.versions import installed

    return ", ".join(f"{name} {version}" for name, version in installed().items())


@pytest.fixture
def rng_key():
    """Returns a random key for a test to split."""
    return jax.random.key(0)


@pytest.fixture
def run_command(monkeypatch):
    """Returns a function that runs a command as its user would, with separate flags.

    A command keeps its flags in the module: parsed there, they would reach later tests.
    """
    untouched = {}
    # So do the levels of logging that `command.guard` sets.
    loggers = [logging.getLogger(name) for name in ("vit_jax", "urllib3", "tifffile")]
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def run(module, *arguments):
        """Runs the command; a user error is a SystemExit with its message."""
        from vit_jax import command

        flag_values = copy.deepcopy(untouched.setdefault(module, module.FLAGS))
        monkeypatch.setattr(module, "FLAGS", flag_values)
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        command.run(module.main, flag_values)

    yield run
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def make_workdir():
    """Returns a function that writes a work directory with a small random model."""
    return _make_workdir


def _make_workdir(
    workdir, *, class_names=(), config=(), preprocessing=(), steps=(3,), **fields
):
    """Writes it; `config`, `preprocessing` and `fields` (architecture) set values."""
    from vit_jax.checkpoints.description import Description
    from vit_jax.checkpoints.saving import Checkpoints
    from vit_jax.checkpoints.workdir import claim
    from vit_jax.config import default_config, to_plain
    from vit_jax.data.preprocessing import Preprocessing
    from vit_jax.models.architecture import Architecture
    from vit_jax.models.vit import VisionTransformer

    sizes = {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2}
    inputs = {"patch_size": (4, 4), "image_size": (8, 8)}
    classes = {"num_classes": len(class_names) or 10}
    architecture = Architecture(**{**sizes, **inputs, **classes, **fields})
    images = jax.numpy.zeros((1, *architecture.image_size, architecture.channels))
    key, head_key = jax.random.split(jax.random.key(0))
    params = jax.jit(VisionTransformer(architecture).init)(key, images)["params"]
    if "head" in params:  # which starts at zero, and would make all logits alike
        kernel = params["head"]["kernel"]
        params["head"]["kernel"] = jax.random.normal(head_key, kernel.shape)
    plain = to_plain(default_config()) | dict(config)
    claim(workdir, plain)
    description = Description(
        architecture=architecture,
        preprocessing=Preprocessing(
            architecture.image_size, architecture.channels, **dict(preprocessing)
        ),
        class_names=tuple(class_names),
        config=plain,
        step=steps[0],
    )
    with Checkpoints(workdir, keep=len(steps)) as checkpoints:
        for step in steps:
            items = {"params": params, "optimizer": {"count": jax.numpy.zeros(())}}
            saved = dataclasses.replace(description, step=step)
            checkpoints.save(step, items, saved)
    return workdir


@pytest.fixture
def make_teacher(tmp_path):
    """Returns a function that writes a small model of random weights to a file."""
    import numpy as np

    from vit_jax.checkpoints.description import Description
    from vit_jax.config import default_config, to_plain
    from vit_jax.data.preprocessing import Preprocessing
    from vit_jax.models import Architecture, abstract_params
    from vit_jax.weights.saving import save_weights

    sizes = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "num_classes": 10}
    inputs = {"patch_size": (4, 4), "image_size": (8, 8)}

    def make(
        name="teacher",
        *,
        class_names=tuple("0123456789"),
        outputs="exclusive",
        architecture=None,
        params=None,
        seed=0,
        preprocessing=(),
        **fields,
    ):
        """Writes it; `preprocessing` and `fields` (architecture) set values."""
        a = architecture or Architecture(**{**sizes, **inputs, **fields})
        rng = np.random.default_rng(seed)
        if params is None:
            params = jax.tree.map(
                lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
                abstract_params(a),
            )
        description = Description(
            architecture=a,
            preprocessing=Preprocessing(
                a.image_size, a.channels, **dict(preprocessing)
            ),
            class_names=tuple(class_names),
            config=to_plain(default_config()),
            step=0,
            outputs=outputs,
        )
        path = tmp_path / f"{name}.safetensors"
        save_weights(description, params, path)
        return str(path)

    return make


# Keys of a recipe on the digits that trains in a second.
TINY = {
    "name": "tiny",
    "dataset": "digits",
    "image_size": (8,),
    "batch_size": 16,
    "eval_batch_size": 360,
    "total_steps": 4,
    "log_every": 1,
    "checkpoint_every": 2,
    "learning_rate": 1e-2,
    "augment.train": "resize(10)|random_crop",
    "model.variant": "Ti/4",
    "model.width": 16,
    "model.depth": 2,
    "model.mlp_dim": 32,
    "model.num_heads": 2,
    "loader_threads": 2,
}


def _tiny(values):
    return {key: x for key, x in (TINY | values).items() if x is not None}


@pytest.fixture
def tiny_config():
    """Returns a function of overrides that makes a config; None = a key's default."""
    from vit_jax.config import default_config

    def make(**values):
        config = default_config()
        config.update_from_flattened_dict(_tiny(values))
        return config

    return make


@pytest.fixture(scope="session")
def tiny_recipe():
    """Returns a function of a folder and overrides that writes the recipe to a file."""

    def write(folder, **values):
        path = folder / "recipe.py"
        path.write_text(
            "from vit_jax.config import default_config\n\n\n"
            "def get_config():\n"
            "    config = default_config()\n"
            f"    config.update_from_flattened_dict({_tiny(values)!r})\n"
            "    return config\n"
        )
        return path

    return write


@pytest.fixture
def add_keys(monkeypatch):
    """Returns a function that adds keys to the config, as a later version would."""
    from vit_jax import config as config_lib
    from vit_jax.train import workdir_name

    today = config_lib.default_config

    def later():
        config = today()
        with config.unlocked():
            config.a_new_key = 1.5
            config.model.a_new_key = True
            config.a_new_section = {"a_new_key": (1, 2)}
        return config

    def add():
        for module in (config_lib, workdir_name):
            monkeypatch.setattr(module, "default_config", later)

    return add


@pytest.fixture
def change_batches(monkeypatch):
    """Returns a function that sets a change of later runs' batches, by number."""
    from vit_jax.train import loop

    opened = loop.open_batches

    def change(function):
        @contextlib.contextmanager
        def changed(setup, source, start):
            with opened(setup, source, start) as batches:
                yield _Changed(batches, function, start)

        monkeypatch.setattr(loop, "open_batches", changed)

    return change


class _Changed:
    def __init__(self, batches, function, start):
        self._batches, self._function, self._number = batches, function, start
        self.waiting_bytes = batches.waiting_bytes

    def __next__(self):
        batch = self._function(self._number, next(self._batches))
        self._number += 1
        return batch
