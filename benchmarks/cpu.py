"""Speed of inference and training on the CPU, next to a matrix product and timm.

    python benchmarks/cpu.py [--variants=S/16,B/16] [--kinds=inference,train]
        [--rounds=9] [--timm_python=PATH] [--compare=explicit,xla] [--json]

Batch 8, float32, 224 × 224, random images; training is one step of AdamW with weight
decay, without clipping. Rates are medians over the rounds; the share is relative to the
rate of a 2048³ product of float32 in the same process, counting the usual operations of
the model. In each round everything runs once in turn, so that whatever slows the
machine down slows all. `--timm_python` is an interpreter that has timm and PyTorch, in
a separate environment, whose process computes only when it is asked to; the ratio is
the median of the ratios within rounds. `--compare` also measures other formulations of
attention. Exits with 1 if a bound is not reached.
"""

import argparse
import json
import operator
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BATCH, SIZE, PRODUCT = 8, 224, 2048
SHARES = {  # of the product's rate; lower bounds
    ("S/16", "inference"): 1.15 * 0.74,
    ("B/16", "inference"): 1.15 * 0.75,
    ("S/16", "train"): 1.15 * 0.74,
    ("B/16", "train"): 0.92,
}
RATIOS = {"inference": 0.95, "train": 0.85}  # to timm's images per second; lower bounds

# Reads "VARIANT KIND" and prints the seconds of one run; the first of each warms up.
TIMM = """
import sys, time
import timm, torch

torch.set_num_threads(int(sys.argv[1]))
names = {"S/16": "vit_small_patch16_224", "B/16": "vit_base_patch16_224"}
batch, size = 8, 224
images = torch.randn(batch, 3, size, size)
labels = torch.zeros(batch, dtype=torch.long)
made = {}

def make(variant, kind):
    model = timm.create_model(names[variant])
    if kind == "inference":
        model.eval()
        def run():
            with torch.inference_mode():
                model(images)
        return run
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    def run():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return run

for line in sys.stdin:
    variant, kind = line.split()
    if (variant, kind) not in made:
        made.clear()
        made[variant, kind] = make(variant, kind)
        made[variant, kind](), made[variant, kind]()
    start = time.perf_counter()
    made[variant, kind]()
    print(time.perf_counter() - start, flush=True)
"""


def ours(variant: str, kind: str, attention: str) -> tuple[Callable[[], None], float]:
    """Returns a function that runs one of our steps, and the operations per image."""
    import jax

    from vit_jax import sharding
    from vit_jax.benchmark.compute import first_state, random_batch
    from vit_jax.config import default_config
    from vit_jax.plan import flops
    from vit_jax.train.programs import build, build_predict
    from vit_jax.train.setup import set_up

    config = default_config()
    config.dataset, config.total_steps = "imagenet2012", 1000
    config.batch_size = config.eval_batch_size = BATCH
    config.model.variant, config.model.attention = variant, attention
    config.image_size, config.weight_decay = (SIZE,), 0.1
    config.grad_clip_norm, config.compute_dtype = 0.0, "float32"
    mesh = sharding.make_mesh(data=1)
    program = {"train": build, "inference": build_predict}[kind]
    step, arguments = program(config, mesh)
    compiled = step.lower(*arguments).compile()
    state, batch = first_state(config, kind, mesh), random_batch(arguments[1])

    def run() -> None:
        nonlocal state
        given = compiled(state, batch)
        if kind == "train":
            state, given = given
        jax.block_until_ready(given)

    counted = flops.count(set_up(config, mesh=mesh).architecture)
    return run, counted.training if kind == "train" else counted.total


def product() -> Callable[[], None]:
    """Returns a function that runs one matrix product."""
    import jax
    import jax.numpy as jnp

    left, right = jax.random.normal(jax.random.key(0), (2, PRODUCT, PRODUCT))
    compiled = jax.jit(jnp.matmul).lower(left, right).compile()
    return lambda: compiled(left, right).block_until_ready()


class Timm:
    """A separate process with timm's models, which waits until it is asked."""

    def __init__(self, python: str, threads: int):
        self._process = subprocess.Popen(
            [python, "-c", TIMM, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, variant: str, kind: str) -> float:
        """Returns the seconds that one run takes."""
        process: Any = self._process
        process.stdin.write(f"{variant} {kind}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            sys.exit("timm's process has ended; what it said is above")
        return float(line)


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    variant: str, kind: str, others: list[str], rounds: int, timm: Timm | None
) -> dict[str, Any]:
    """Measures one model in rounds, in training or inference."""
    runs = {name: ours(variant, kind, name) for name in ("auto", *others)}
    multiply, operations = product(), runs["auto"][1]
    seconds: dict[str, list[float]] = {name: [] for name in ("product", *runs)}
    if timm:
        seconds["timm"] = []
    for turn in range(rounds + 2):
        found = {name: timed(run) for name, (run, _) in runs.items()}
        found["product"] = statistics.median(timed(multiply) for _ in range(5))
        if timm:
            found["timm"] = timm.seconds(variant, kind)
        if turn >= 2:  # the first two warm up
            for name, one in found.items():
                seconds[name].append(one)
    peak = 2 * PRODUCT**3 / statistics.median(seconds["product"])
    report: dict[str, Any] = {"variant": variant, "kind": kind, "product": peak}
    for name, some in seconds.items():
        if name != "product":
            rate = BATCH / statistics.median(some)
            share = rate * operations / peak
            report[name] = {"images_per_second": rate, "share": share}
    if timm:
        pairs = map(operator.truediv, seconds["timm"], seconds["auto"])
        report["ours_over_timm"] = statistics.median(pairs)
    return report


def missed(report: dict[str, Any]) -> list[str]:
    """Describes the bounds that are not reached."""
    variant, kind = report["variant"], report["kind"]
    share, bound = report["auto"]["share"], SHARES.get((variant, kind), 0.0)
    found = []
    if share < bound:
        found.append(f"{variant} {kind}: share {share:.3f}, at least {bound:.3f}")
    ratio = report.get("ours_over_timm", RATIOS[kind])
    if ratio < RATIOS[kind]:
        found.append(f"{variant} {kind}: {ratio:.2f} × timm, at least {RATIOS[kind]}")
    return found


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default="S/16,B/16")
    parser.add_argument("--kinds", default="inference,train")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--timm_python", default="")
    parser.add_argument("--compare", default="")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    from vit_jax.host_memory import keep_freed_memory

    keep_freed_memory()  # as the commands do; the product gains from it too
    timm = None
    if given.timm_python:
        timm = Timm(given.timm_python, len(os.sched_getaffinity(0)))
    others = [name for name in given.compare.split(",") if name]
    reports = []
    for variant in given.variants.split(","):
        for kind in given.kinds.split(","):
            report = measure(variant, kind, others, given.rounds, timm)
            reports.append(report)
            if not given.json:
                show(report)
    if given.json:
        print(json.dumps(reports, allow_nan=False))
    problems = [text for report in reports for text in missed(report)]
    for text in problems:
        print(f"MISSED: {text}", file=sys.stderr)
    return int(bool(problems))


def show(report: dict[str, Any]) -> None:
    """Prints one model's numbers as text."""
    peak = report["product"] / 1e9
    print(f"{report['variant']} {report['kind']}; the product {peak:.0f} GFLOP/s")
    for name, row in report.items():
        if isinstance(row, dict):
            rate, share = row["images_per_second"], row["share"]
            print(f"  {name:10} {rate:7.2f} images/s, share {share:.3f}")
    if "ours_over_timm" in report:
        print(f"  ours over timm {report['ours_over_timm']:.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
