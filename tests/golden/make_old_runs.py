"""Trains the runs in old_runs/ with the version of this package that they stand for.

In a checkout of commit 4f40482 (version 0.1), with the package's dependencies:

    PYTHONPATH=. JAX_PLATFORMS=cpu python .../tests/golden/make_old_runs.py

writes, beside this script, for each run of old_runs/recipe.py

    NAME/           the work directory as a kill after its first checkpoint leaves it
    NAME.jsonl      the metrics of the run when nothing interrupts it
    NAME.npz        images, and the logits that `vit_jax.load(NAME)` gives for them,
                    with averaged weights where there are any (`last`: without)

and model.safetensors, the adamw run in our own format. With eight simulated devices.
"""

import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile

import numpy as np

import vit_jax
from vit_jax.config import default_workdir

FOLDER = pathlib.Path(__file__).parent / "old_runs"
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def main():
    """The command; see the module's docstring."""
    recipe = runpy.run_path(str(FOLDER / "recipe.py"))
    images = np.linspace(-1, 1, 4 * 8 * 8 * 3, dtype=np.float32).reshape(4, 8, 8, 3)
    images = np.sin(17 * images)
    names = {}
    for name in recipe["RUNS"]:
        config = recipe["get_config"](name)
        names[name] = default_workdir(config)
        workdir = FOLDER / name
        shutil.rmtree(workdir, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            # Without --workdir, as the run is continued later.
            command = [sys.executable, "-m", "vit_jax.main"]
            command.append(f"--config={FOLDER / 'recipe.py'}:{name}")
            environment = {**os.environ, **EIGHT, "PYTHONPATH": os.getcwd()}
            subprocess.run(command, env=environment, cwd=folder, check=True)
            shutil.move(pathlib.Path(folder, names[name]), workdir)
        _as_killed(workdir, config.checkpoint_every)
        logits, last = (
            np.asarray(vit_jax.load(workdir, ema=ema)(images)) for ema in (True, False)
        )
        np.savez(FOLDER / f"{name}.npz", images=images, logits=logits, last=last)
    (FOLDER / "names.json").write_text(json.dumps(names, indent=1) + "\n")
    vit_jax.save(vit_jax.load(FOLDER / "adamw"), FOLDER / "model.safetensors")


def _as_killed(workdir, step):
    """Moves the metrics out, and takes away what was written after `step`."""
    metrics = workdir / "metrics.jsonl"
    text = metrics.read_text()
    (FOLDER / f"{workdir.name}.jsonl").write_text(text)
    lines = text.splitlines(keepends=True)
    metrics.write_text("".join(x for x in lines if json.loads(x)["step"] <= step))
    for checkpoint in (workdir / "checkpoints").iterdir():
        if checkpoint.name != str(step):
            shutil.rmtree(checkpoint)
    # Its files are named after the machine.
    shutil.rmtree(workdir / "tensorboard")


if __name__ == "__main__":
    main()
