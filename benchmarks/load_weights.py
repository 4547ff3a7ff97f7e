"""Time and memory of loading a Google .npz, compared with numpy.load of all arrays.

    python benchmarks/load_weights.py [--variant=L/16] [--runs=5]

Makes a file of random weights, then reads it in a fresh process each time, in turn: all
arrays with numpy.load, and the model with vit_jax.load. Imports and the start of JAX
are not counted. Prints medians, their ratio, and the peak of resident memory beyond
that of the process before loading, in units of the parameters' size. Exits with 1 and a
message if the ratio or the peak of vit_jax.load is more than 1.5.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

MOST_TIME = 1.5  # times that of numpy.load
MOST_MEMORY = 1.5  # times that of the parameters

COMMON = """
import json, pathlib, sys, threading, time
import numpy as np
import vit_jax.api, jax
jax.device_put(np.zeros(3)).block_until_ready()

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

def load_numpy(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}

def load_vit_jax(path):
    model = vit_jax.api.load(path)
    jax.block_until_ready(model.params)
    return model

before, peak, done = resident(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
kept = {"numpy": load_numpy, "vit_jax": load_vit_jax}[sys.argv[2]](sys.argv[1])
seconds = time.perf_counter() - start
done = True
watcher.join()
print(json.dumps({"seconds": seconds, "peak": peak - before}))
"""


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="L/16")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "weights.npz")
        size = _write(arguments.variant, path)
        results = {"numpy": [], "vit_jax": []}
        for run in range(arguments.runs + 1):
            for how, found in results.items():
                measured = _measure(path, how)
                if run:  # the first fills the page cache
                    found.append(measured)
    print(f"{arguments.variant}, {size / 1e6:.0f} MB of parameters")
    seconds, peak = {}, {}
    for how, found in results.items():
        seconds[how] = statistics.median(x["seconds"] for x in found)
        peak[how] = statistics.median(x["peak"] for x in found) / size
        print(f"  {how:8} {seconds[how]:6.2f} s   peak {peak[how]:.2f} × parameters")
    ratio = seconds["vit_jax"] / seconds["numpy"]
    print(f"  ratio    {ratio:6.2f}")
    problems = exceeded(ratio, peak["vit_jax"])
    for problem in problems:
        print(f"FAILED: {problem}")
    return int(bool(problems))


def exceeded(ratio: float, peak: float) -> list[str]:
    """Describes the bounds that loading exceeds, one sentence each.

    Args:
      ratio: its time, in units of that of numpy.load.
      peak: its memory, in units of that of the parameters.
    """
    kinds = (
        ("time", ratio, MOST_TIME, "that of numpy.load"),
        ("peak of memory", peak, MOST_MEMORY, "the parameters"),
    )
    return [
        f"the {what} is {value:.2f} × {unit}, at most {most} × is allowed"
        for what, value, most, unit in kinds
        if value > most
    ]


def _write(variant: str, path: pathlib.Path) -> int:
    import jax
    import numpy as np

    from vit_jax.checkpoints.description import Description
    from vit_jax.config import default_config, to_plain
    from vit_jax.data.preprocessing import Preprocessing
    from vit_jax.models import abstract_params, architecture_from_variant
    from vit_jax.weights.saving import save_weights

    architecture = architecture_from_variant(
        variant, image_size=(224, 224), num_classes=1000
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.standard_normal(x.shape, np.float32),
        abstract_params(architecture),
    )
    description = Description(
        architecture,
        Preprocessing(architecture.image_size),
        (),
        to_plain(default_config()),
        0,
    )
    save_weights(description, params, path, "google")
    return sum(x.nbytes for x in jax.tree.leaves(params))


def _measure(path: pathlib.Path, how: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", COMMON, str(path), how],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
