"""The cost of saving a checkpoint for the steps around it.

    python benchmarks/checkpoints.py [--variant=S/16] [--batch=8] [--steps=100]
    python benchmarks/checkpoints.py --sums=2.6

Runs the training step in turn with and without one save per `--steps` steps, and prints
how long `save` keeps the loop waiting and how much time it adds to the steps. On a CPU
the copy, the compression and the checksums compete with the step for the same cores;
with an accelerator only the copy to the host does. With `--sums` nothing is trained:
prints how long the checksums of so many GB take, right after they were written.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax import sharding
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.manifest import write_manifest
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.train.setup import set_up


def time_sums(gigabytes):
    chunk = np.random.default_rng(0).bytes(2**26)
    with tempfile.TemporaryDirectory() as folder:
        count = max(round(gigabytes * 1e9 / len(chunk)), 1)
        for number in range(count):
            (pathlib.Path(folder) / str(number)).write_bytes(chunk)
        wall, cores = time.perf_counter(), time.process_time()
        write_manifest(pathlib.Path(folder))
        wall, cores = time.perf_counter() - wall, time.process_time() - cores
    size = count * len(chunk) / 1e9
    print(f"{size:.1f} GB: {wall:.1f} s, {cores:.1f} s of one core")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sums", type=float, metavar="GB")
    options = parser.parse_args()
    if options.sums:
        time_sums(options.sums)
        return
    config = config_lib.default_config()
    config.model.variant, config.total_steps = options.variant, 10**6
    config.batch_size = options.batch
    setup = set_up(config)
    step = setup.lower().compile()
    state = jax.jit(lambda: setup.new_state(setup.init_params()))()
    state = jax.device_put(
        state, jax.tree.map(lambda x: x.sharding, setup.abstract_state())
    )
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    rng = np.random.default_rng(0)
    shapes = setup.abstract_batch()
    batch = sharding.place(
        {
            name: rng.integers(0, 2, x.shape).astype(x.dtype)
            for name, x in shapes.items()
        },
        setup.mesh,
    )
    plain, saving, waits = [], [], []
    with tempfile.TemporaryDirectory() as workdir, Checkpoints(workdir, 1) as kept:
        for repeat in range(2 * options.repeats + 1):
            saves = repeat % 2 == 0
            start = time.perf_counter()
            for number in range(options.steps):
                state, metrics = step(state, batch)
                if saves and number == 0:
                    jax.block_until_ready(metrics)  # the step's own time
                    before = time.perf_counter()
                    at = repeat + 1
                    text = Description(
                        setup.architecture,
                        setup.preprocessing,
                        (),
                        config_lib.to_plain(setup.config),
                        at,
                    )
                    kept.save(at, state.params, state.opt_state, text)
                    waits.append(time.perf_counter() - before)
            jax.block_until_ready(metrics)
            (saving if saves else plain).append(time.perf_counter() - start)
    without, with_save = statistics.median(plain), statistics.median(saving[1:])
    print(
        f"{options.variant}, {size / 2**20:,.0f} MiB of state, {options.steps} steps "
        f"of {options.batch} images on {jax.devices()[0].device_kind}: {without:.1f} s "
        f"without a save, {with_save:.1f} s with one ({with_save / without - 1:+.2%}); "
        f"save itself returned after {statistics.median(waits):.3f} s "
        f"({statistics.median(waits) / without:.2%})"
    )


if __name__ == "__main__":
    main()
