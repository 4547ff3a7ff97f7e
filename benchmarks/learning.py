"""Measures what the ways to learn are worth, on the images of Fashion-MNIST.

    python benchmarks/learning.py masked --data=FOLDER [--seeds=0,1,2] [--out=DIR]
    python benchmarks/learning.py distilled --data=FOLDER …
    python benchmarks/learning.py self_distilled --data=FOLDER …
    python benchmarks/learning.py mark --data=FOLDER

FOLDER holds the four files of Fashion-MNIST as they are published (Debian's package
dataset-fashion-mnist has them). The last 5,000 training images are for validation: what
was chosen was chosen by them. The 10,000 test images are used once, at the end of each
run. Every run is a command of this package; it is printed, with its seconds and
numbers, and continues where it stopped when the script is called again.

masked: MAE on all training images without labels, then fine-tuning on 2,000 labels;
  beside it the same fine-tuning from random weights.
distilled: a student that sees 2,000 images with a teacher that was trained on all, and
  the same student on their labels.
self_distilled: nearest neighbours by the features of DINO's teacher, of the same model
  at random, and by the pixels.
mark: a supervised run of 5 epochs on all 60,000 training images.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.data.sources.datasets import open_dataset

TRAIN, VALIDATION, TEST = "train[:55000]", "train[55000:]", "test"
LABELLED = "train[:2000]"
NEIGHBORS, TEMPERATURE = 20, 0.07


class Runs:
    """Runs of one experiment, in a folder."""

    def __init__(self, data: str, folder: pathlib.Path):
        self.data, self.folder = os.path.abspath(data), folder

    def train(self, name: str, recipe: str, seed: int, *flags: str) -> pathlib.Path:
        """Trains, unless it is done already; returns the work directory."""
        workdir = self.folder / f"{name}-{seed}"
        done = workdir / "seconds.json"
        if done.exists():
            return workdir
        started = time.monotonic()
        run_command(
            *("vit_jax.main", f"--config=configs/{recipe}", f"--workdir={workdir}"),
            *(f"--config.dataset={self.data}", f"--config.seed={seed}"),
            *(f"--config.eval_split={VALIDATION}", *flags),
        )
        # If a run was interrupted, this is the time of its last part.
        done.write_text(json.dumps({"seconds": time.monotonic() - started}))
        return workdir

    def seconds(self, workdir: pathlib.Path) -> float:
        """Returns how long the run took."""
        return json.loads((workdir / "seconds.json").read_text())["seconds"]

    def measure(self, workdir: pathlib.Path, *flags: str) -> dict[str, Any]:
        """Evaluates a run on the test images."""
        kept = workdir / f"test{'-knn' if flags else ''}.json"
        if not kept.exists():
            found = run_command(
                *("vit_jax.evaluate", f"--checkpoint={workdir}", f"--split={TEST}"),
                *("--json", *flags),
                capture=True,
            )
            kept.write_text(found)
        return json.loads(kept.read_text())


def run_command(module: str, *arguments: str, capture: bool = False) -> str:
    """Prints and runs a command of this package on the CPU; returns its output."""
    words = [sys.executable, "-m", module, *arguments]
    print("$", shlex.join(["python", *words[1:]]), flush=True)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        words,
        env=environment,
        stdout=subprocess.PIPE if capture else None,
        stderr=None if capture else subprocess.DEVNULL,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{module} ended with status {done.returncode}")
    return done.stdout or ""


def masked(runs: Runs, seeds: Sequence[int]) -> None:
    """Masked autoencoding before fine-tuning on 2,000 labels, and without."""
    few = (f"--config.train_split={LABELLED}", *FINE_TUNING)
    found: dict[str, list[float]] = {"after MAE": [], "from random weights": []}
    for seed in seeds:
        start = runs.train(
            *("mae", "mae.py:pretrain,fashion", seed),
            *(f"--config.train_split={TRAIN}", *PRETRAINING),
        )
        for name, pretrained in zip(found, (str(start), ""), strict=True):
            workdir = runs.train(
                *(name.replace(" ", "-"), "mae.py:finetune,fashion", seed, *few),
                f"--config.pretrained={pretrained}",
            )
            _report(runs, name, seed, workdir, found)
        print(f"  pretraining took {runs.seconds(start):.0f} s")
    _summary(found)


def distilled(runs: Runs, seeds: Sequence[int]) -> None:
    """A student with a larger teacher, and the same without, on 2,000 images."""
    recipe, few = "distill.py:{},fashion-mnist", f"--config.train_split={LABELLED}"
    every = f"--config.train_split={TRAIN}"
    teacher = runs.train("teacher", recipe.format("teacher"), 0, every, *TEACHER)
    found: dict[str, list[float]] = {"teacher": [], "student": [], "control": []}
    _report(runs, "teacher", 0, teacher, found)
    for seed in seeds:
        for name in ("student", "control"):
            flags = [few, *STUDENT]
            if name == "student":
                flags.append(f"--config.objective_options.teachers={teacher}")
            workdir = runs.train(name, recipe.format(name), seed, *flags)
            _report(runs, name, seed, workdir, found)
    _summary(found)


def self_distilled(runs: Runs, seeds: Sequence[int]) -> None:
    """Nearest neighbours by features of DINO, of random weights, and by pixels."""
    split = f"--config.train_split={TRAIN}"
    knn = ("--evaluator=knn", f"--option=k={NEIGHBORS}")
    found: dict[str, list[float]] = {"DINO": [], "random weights": [], "pixels": []}
    for seed in seeds:
        for name, flags in (
            ("DINO", SELF_DISTILLATION),
            ("random weights", ("--config.learning_rate=0", *ONE_STEP)),
        ):
            label = name.replace(" ", "-")
            workdir = runs.train(label, "dino.py:fashion", seed, split, *flags)
            _report(runs, name, seed, workdir, found, *knn)
    found["pixels"].append(pixel_neighbors(runs.data))
    _summary(found)


def mark(runs: Runs, seeds: Sequence[int]) -> None:
    """A supervised run on all training images."""
    found: dict[str, list[float]] = {"supervised, 5 epochs": []}
    for seed in seeds[:1]:
        workdir = runs.train(
            *("mark", "distill.py:teacher,fashion-mnist", seed),
            "--config.train_split=train",
        )
        _report(runs, "supervised, 5 epochs", seed, workdir, found)
    _summary(found)


# Changes of the recipes' small rows: a run takes at most 12 minutes on two cores.
PRETRAINING: tuple[str, ...] = ()
FINE_TUNING: tuple[str, ...] = ("--config.total_epochs=15",)
TEACHER: tuple[str, ...] = ("--config.total_epochs=3",)
STUDENT: tuple[str, ...] = ("--config.total_epochs=40",)
SELF_DISTILLATION: tuple[str, ...] = ()
ONE_STEP = (
    *("--config.total_steps=1", "--config.warmup_steps=0"),
    "--config.min_learning_rate=0",
    "--config.objective_options.freeze_last_layer=0",
)


def pixel_neighbors(data: str) -> float:
    """Returns the accuracy of weighted nearest neighbours by the pixels alone."""
    dataset = open_dataset(data)
    (bank, known), (queries, wanted) = (
        _pixels(dataset.split(split)) for split in (TRAIN, TEST)
    )
    right = 0
    for start in range(0, len(queries), 500):
        similar = queries[start : start + 500] @ bank.T
        nearest = np.argpartition(-similar, NEIGHBORS, axis=1)[:, :NEIGHBORS]
        votes = np.exp(np.take_along_axis(similar, nearest, axis=1) / TEMPERATURE)
        scores = np.zeros((len(similar), 10))
        for column in range(NEIGHBORS):
            rows = np.arange(len(similar))
            np.add.at(scores, (rows, known[nearest[:, column]]), votes[:, column])
        right += int((scores.argmax(1) == wanted[start : start + 500]).sum())
    return right / len(queries)


def _pixels(source: Any) -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([np.ravel(source[i].image) for i in range(len(source))])
    images = images.astype(np.float32)
    return images / np.linalg.norm(images, axis=1, keepdims=True), source.labels()


def _report(
    runs: Runs,
    name: str,
    seed: int,
    workdir: pathlib.Path,
    found: dict[str, list[float]],
    *flags: str,
) -> None:
    measured = runs.measure(workdir, *flags)
    found[name].append(measured["top1"])
    seconds = runs.seconds(workdir)
    print(f"  {name}, seed {seed}: test {measured['top1']:.2%}, {seconds:.0f} s")


def _summary(found: dict[str, list[float]]) -> None:
    print("\n| | test accuracy, by seed | mean |\n|---|---|---|")
    for name, shares in found.items():
        listed = ", ".join(f"{100 * share:.1f}" for share in shares)
        print(f"| {name} | {listed} | {100 * statistics.mean(shares):.1f} |")


EXPERIMENTS: dict[str, Callable[[Runs, Sequence[int]], None]] = {
    one.__name__: one for one in (masked, distilled, self_distilled, mark)
}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="runs/learning")
    given = parser.parse_args()
    runs = Runs(given.data, pathlib.Path(given.out))
    EXPERIMENTS[given.experiment](runs, [int(x) for x in given.seeds.split(",")])


if __name__ == "__main__":
    main()
