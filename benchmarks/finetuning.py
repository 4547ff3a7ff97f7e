"""Compares ways to fine-tune a real DINOv2 ViT-S/14, at equal numbers of steps.

    python benchmarks/finetuning.py --data=FOLDER [--seeds=0] [--out=DIR]
        [--methods=full,last_blocks,lora,prompts,bitfit,probe] [--epochs=1]

FOLDER holds the four files of Fashion-MNIST as they are published (Debian's package
dataset-fashion-mnist has them). The first 6,000 training images are for training, at
98 × 98 pixels; training images 55,000 to 56,999 choose each method's learning rate from
those listed in `METHODS`; the first 2,000 test images are used once, with the rate that
was chosen. The weights come from the package index (benchmarks/check_dinov2.py).

Every run is a command of this package; it is printed, and continues where it stopped
when the script is called again. The table has, for each method, the accuracy, the
trained parameters, the bytes of the optimiser's state and the time of a step. Steps of
all methods are timed in turn in one process, so other work on the machine changes the
ratios little.
"""

import argparse
import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import check_dinov2
from learning import run_command
from steps import compiled_step, in_turn, timed

TRAIN, VALIDATION, TEST = "train[:6000]", "train[55000:57000]", "test[:2000]"
BATCH = 32


class Method(NamedTuple):
    """One way to fine-tune.

    Attributes:
      keys: keys of the config, with their values.
      rates: learning rates to choose from.
    """

    keys: Mapping[str, str]
    rates: Sequence[float]


# A new head of zeros needs a far higher rate than the weights that it reads: with one
# rate for both, full fine-tuning ends at 66 % where it reaches 87 % with these.
_HEAD_FASTER = {"groups": "head/.*: lr=100"}

METHODS: dict[str, Method] = {
    "full": Method(_HEAD_FASTER, (1e-5, 3e-5, 1e-4)),
    "last_blocks": Method(
        {"train_only": r"blocks_(10|11)/.*,norm/.*,head", **_HEAD_FASTER}, (3e-5, 1e-4)
    ),
    "lora": Method({"lora.rank": "8", "lora.targets": "attention"}, (1e-3, 3e-3)),
    "prompts": Method({"prompts.count": "10", "prompts.deep": "true"}, (3e-3, 1e-2)),
    "bitfit": Method({"train_only": "bitfit"}, (3e-3, 1e-2)),
    "probe": Method({"train_only": "head"}, (3e-3, 1e-2)),
}


def flags(data: str, weights: pathlib.Path, epochs: float) -> list[str]:
    """Returns the flags that all runs share."""
    values = {
        "dataset": data,
        "pretrained": weights,
        "model.variant": "",
        "image_size": 98,
        "train_split": TRAIN,
        "eval_split": VALIDATION,
        "batch_size": BATCH,
        "eval_batch_size": 250,
        "accum_steps": 1,
        "optimizer": "adamw",
        "momentum_dtype": "float32",
        "total_steps": round(epochs * 6000 / BATCH),
        "warmup_steps": 20,
        "weight_decay": 0.01,
        "augment.train": "resize|flip_lr",
        "eval_every": 0,
        "checkpoint_every": 50,
    }
    return [f"--config.{key}={value}" for key, value in values.items()]


def train(
    workdir: pathlib.Path, shared: Sequence[str], keys: Mapping[str, Any]
) -> float:
    """Trains, unless it is done already; returns the validation accuracy."""
    own = [f"--config.{key}={value}" for key, value in keys.items()]
    run_command(
        *("vit_jax.main", "--config=configs/b16.py:digits", f"--workdir={workdir}"),
        *(*shared, *own),
    )
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["top1"] for line in lines if line["split"] == "eval"][-1]


def accuracy(workdir: pathlib.Path) -> float:
    """Measures a run on the test images."""
    kept = workdir / "test.json"
    if not kept.exists():
        arguments = f"--checkpoint={workdir}", f"--split={TEST}", "--json"
        kept.write_text(run_command("vit_jax.evaluate", *arguments, capture=True))
    return json.loads(kept.read_text())["top1"]


def costs(methods: Sequence[str], rounds: int = 9) -> dict[str, dict[str, float]]:
    """Counts what each method trains and keeps, and times its step, in turn."""
    from vit_jax.host_memory import keep_freed_memory

    keep_freed_memory()  # as the commands do
    configs = {name: _recipe(METHODS[name].keys) for name in methods}
    found = {name: _sizes(config) for name, config in configs.items()}
    steps = {name: timed(compiled_step(config)) for name, config in configs.items()}
    seconds = in_turn(steps, rounds)
    for name in methods:
        found[name]["seconds"] = statistics.median(seconds[name])
    return found


def _recipe(keys: Mapping[str, Any]) -> Any:
    """Returns the config of a method's step, with random weights."""
    from vit_jax.config.recipes import load_recipe

    words = [f"--config.{key}={value}" for key, value in keys.items()]
    words += [
        *("--config.model.variant=S/14", "--config.image_size=98"),
        *("--config.model.layer_scale=1", "--config.model.gelu=exact"),
        *(f"--config.batch_size={BATCH}", "--config.accum_steps=1"),
        *("--config.optimizer=adamw", "--config.momentum_dtype=float32"),
    ]
    return load_recipe(["", "--config=configs/b16.py:digits", *words])[0]


def _sizes(config: Any) -> dict[str, float]:
    """Counts the parameters that are trained, and the bytes of the optimiser."""
    import jax

    from vit_jax import sharding
    from vit_jax.train.setup import set_up

    setup = set_up(config, mesh=sharding.make_mesh(data=1))
    state = setup.abstract_state()
    trained = jax.tree.leaves(setup.groups.trained(state.params))
    kept = jax.tree.leaves(state.opt_state)
    return {
        "trained": sum(x.size for x in trained),
        "optimiser": sum(x.size * x.dtype.itemsize for x in kept),
    }


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/tuning"))
    given = parser.parse_args()
    methods = given.methods.split(",")
    found = costs(methods)
    weights = (given.out / "dinov2").absolute()
    if not (weights / "config.json").exists():
        package, file = check_dinov2.MODEL
        content = check_dinov2.fetch(given.out, package, [file])[file]
        check_dinov2.write(weights, check_dinov2.dinov2(content))
    shared = flags(os.path.abspath(given.data), weights, given.epochs)
    print(f"weights: {check_dinov2.NOTE}")
    for name in methods:
        method = METHODS[name]
        found[name]["tests"] = []
        for seed in map(int, given.seeds.split(",")):
            scores = {}
            for rate in method.rates:
                workdir = given.out / f"{name}-{rate:g}-{seed}"
                keys = {**method.keys, "learning_rate": rate, "seed": seed}
                scores[rate] = train(workdir, shared, keys)
                print(f"  {name}, {rate:g}: validation {scores[rate]:.2%}", flush=True)
            best = max(scores, key=lambda rate: scores[rate])
            score = accuracy(given.out / f"{name}-{best:g}-{seed}")
            print(f"  {name}, seed {seed}: test {score:.2%} with {best:g}", flush=True)
            found[name]["tests"].append(score)
            found[name]["rate"] = best
    print("\n| | rate | test accuracy | trained parameters | optimiser | step |")
    print("|---|---|---|---|---|---|")
    first = found[methods[0]]["seconds"]
    for name in methods:
        one = found[name]
        tests = ", ".join(f"{100 * score:.1f}" for score in one["tests"])
        print(
            f"| {name} | {one['rate']:g} | {tests} | {one['trained']:,} | "
            f"{one['optimiser'] / 1e6:.2f} MB | {one['seconds']:.2f} s "
            f"({one['seconds'] / first:.2f} ×) |"
        )


if __name__ == "__main__":
    main()
