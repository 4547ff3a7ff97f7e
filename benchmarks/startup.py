"""Time that passes before anything is computed, each in a separate process.

    python benchmarks/startup.py [--runs=3]

Measures the following, and exits with 1 if a bound is exceeded:

  import    `import vit_jax` and `import vit_jax.api` on top of jax and flax
  predict   `python -m vit_jax.predict` on one image with S/16, from its start to its
            end, with the compiled program in a cache
  lower     H/14's training step, traced and lowered
  compile   the same with `model.scan`, compiled for one CPU

Reports the median of the runs; the first run of `predict`, which fills the cache, does
not count. Lowering and compiling run once, each in its own process. Nothing is kept.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

BOUNDS = {  # seconds
    "import vit_jax": 0.3,
    "import vit_jax.api": 0.3,
    "predict S/16, warm": 8.0,
    "lower H/14's step": 15.0,
    "compile H/14's step, scanned": 40.0,
}

IMPORT = """
import time
import flax.linen, jax
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""

STEP = """
import sys, time
from vit_jax import sharding
from vit_jax.config import default_config
from vit_jax.train.programs import build

config = default_config()
config.model.variant = "H/14"
config.model.scan = sys.argv[1] == "compile"
config.dataset, config.total_steps = "imagenet2012", 1000
config.batch_size = 8
config.weight_decay = 0.1
start = time.perf_counter()
step, arguments = build(config, sharding.make_mesh(data=1))
lowered = step.lower(*arguments)
if sys.argv[1] == "compile":
    start = time.perf_counter()
    lowered.compile()
print(time.perf_counter() - start)
"""

MODEL = """
import sys
import jax, numpy as np
from PIL import Image
from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import abstract_params, architecture_from_variant
from vit_jax.weights.saving import save_weights

architecture = architecture_from_variant(
    "S/16", image_size=(224, 224), num_classes=1000
)
rng = np.random.default_rng(0)
params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32) / 50,
    abstract_params(architecture),
)
description = Description(
    architecture, Preprocessing((224, 224)), (), to_plain(default_config()), 0
)
save_weights(description, params, sys.argv[1], "vit_jax")
pixels = rng.integers(0, 256, (375, 500, 3), np.uint8)
Image.fromarray(pixels).save(sys.argv[2])
"""


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    measured = {}
    for name in ("vit_jax", "vit_jax.api"):
        code = IMPORT.format(module=name)
        seconds = [float(_python("-c", code)) for _ in range(runs)]
        measured[f"import {name}"] = statistics.median(seconds)
    measured["predict S/16, warm"] = statistics.median(_predict(runs))
    measured["lower H/14's step"] = float(_python("-c", STEP, "lower"))
    measured["compile H/14's step, scanned"] = float(_python("-c", STEP, "compile"))
    for name, seconds in measured.items():
        print(f"{name:30} {seconds:7.2f} s   at most {BOUNDS[name]:g} s")
    exceeded = [name for name, bound in BOUNDS.items() if measured[name] > bound]
    if exceeded:
        print(f"FAILED: {', '.join(exceeded)}")
    return int(bool(exceeded))


def _predict(runs: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        model, image, cached = (
            str(pathlib.Path(folder, name))
            for name in ("s16.safetensors", "image.jpg", "cache")
        )
        _python("-c", MODEL, model, image)
        cache = {
            "JAX_COMPILATION_CACHE_DIR": cached,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        seconds = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            _python("-m", "vit_jax.predict", f"--checkpoint={model}", image, **cache)
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _python(*arguments: str, **environment: str) -> str:
    cpu = {"JAX_PLATFORMS": "cpu"}
    # Except for `predict`, no compiled program may be found in a cache.
    mine = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=mine | cpu | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
