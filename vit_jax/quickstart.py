"""Runs the main job end to end on real images, using only the public commands.

  python -m vit_jax.quickstart [--workdir=runs/quickstart] [--fresh]

Pretrains on scikit-learn's digits, fine-tunes at a higher resolution, does the same
from random weights as a control, evaluates all three and predicts a few image files.
Finished parts are kept: a second call continues, or shows the result.
"""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from vit_jax import command
from vit_jax.checkpoints.workdir import write_atomically
from vit_jax.errors import UserError
from vit_jax.stop_signals import stop_signals

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "workdir", "runs/quickstart", "directory for all output", flag_values=FLAGS
)
flags.DEFINE_bool(
    "fresh", False, "delete earlier results and train again", flag_values=FLAGS
)

RECIPE = pathlib.Path("configs/quickstart.py")
RESULT, FINISHED = "quickstart.json", "finished.json"
PARTS = ("pretrain", "finetune", "control")
# Part → name of its held-out accuracy in quickstart.json.
NAMES = {"pretrain": "pretrained", "finetune": "finetuned", "control": "control"}
NUM_IMAGES = 5


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    if arguments:
        raise UserError(f"unexpected arguments {arguments}")
    workdir = pathlib.Path(FLAGS.workdir)
    if FLAGS.fresh:
        _forget(workdir)
    result = workdir / RESULT
    numbers = _read(result)
    if not numbers:
        numbers = _run(workdir)
        write_atomically(result, json.dumps(numbers) + "\n")
    _show(workdir, numbers)


def _forget(workdir: pathlib.Path) -> None:
    """Removes the files that a quickstart writes, and nothing else."""
    for name in (*PARTS, "images", "compiled", FINISHED, RESULT):
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object that was written before; {} if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _run(workdir: pathlib.Path) -> dict[str, float]:
    """Runs the parts that are not finished; returns the content of quickstart.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    finished = _Finished(workdir / FINISHED)
    for part in PARTS:
        # The checkout's recipe, which may have been changed, else the installed one.
        recipe = RECIPE if RECIPE.is_file() else RECIPE.stem
        options = [f"--config={recipe}:{part}", f"--workdir={workdir / part}"]
        # The model is so small that it may ignore an accelerator.
        options.append("--config.allow_cpu=true")
        if part == "finetune":
            options.append(f"--config.pretrained={workdir / 'pretrain'}")
        finished.do(part, lambda options=options: _call("main", *options))
    accuracy = {
        NAMES[part]: finished.do(
            f"evaluate {part}", lambda part=part: _evaluate(workdir / part)
        )
        for part in PARTS
    }
    images = _write_images(workdir / "images")
    checkpoint = f"--checkpoint={workdir / 'finetune'}"
    finished.do(
        "predict", lambda: _call("predict", checkpoint, "--top_k=2", *images, show=True)
    )
    return {**accuracy, "seconds": round(finished.seconds, 1)}


class _Finished:
    """The results and durations of finished parts, kept in a file."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._parts = _read(path)

    @property
    def seconds(self) -> float:
        return sum(part["seconds"] for part in self._parts.values())

    def do(self, name: str, action: Callable[[], Any]) -> Any:
        """Runs the action unless it has finished before; returns its result."""
        part = self._parts.setdefault(name, {"seconds": 0.0})
        if "value" not in part:
            start = time.monotonic()
            try:
                part["value"] = action()
            finally:  # an interrupted part took time too
                part["seconds"] += time.monotonic() - start
                write_atomically(self._path, json.dumps(self._parts))
        return part["value"]


def _call(module: str, *options: str, show: bool = False) -> str:
    """Runs one public command, as a user would type it; returns its output."""
    words = ["-m", f"vit_jax.{module}", *options]
    print(f"\n$ {_python()} {shlex.join(words)}", file=sys.stderr, flush=True)
    # The parts share some of their programs; with a cache each is compiled once.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(FLAGS.workdir, "compiled"))}
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**cache, **os.environ},
        # A process group of its own, so that a signal reaches it once, from us, and it
        # can save.
        process_group=0,
    )
    with _passing_on(process):
        output, _ = process.communicate()
    if status := process.returncode:
        # The command has printed the reason.
        sys.exit(status if status > 0 else 128 - status)
    if show:
        print(output, file=sys.stderr, flush=True)
    return output


@contextlib.contextmanager
def _passing_on(process: subprocess.Popen[str]) -> Iterator[None]:
    """Passes signals that ask to stop on to the process while inside."""

    def pass_on(number: int, _: Any) -> None:
        process.send_signal(number)

    numbers = stop_signals()
    previous = [signal.signal(number, pass_on) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def _python() -> str:
    """Returns what a user types to run this interpreter."""
    if shutil.which("python") == sys.executable:
        return "python"
    path = pathlib.Path(sys.executable)
    here = pathlib.Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _evaluate(workdir: pathlib.Path) -> float:
    numbers = json.loads(_call("evaluate", f"--checkpoint={workdir}", "--json"))
    return numbers["top1"]


def _write_images(folder: pathlib.Path) -> list[str]:
    """Writes held-out digits as PNG files, named after the digit they show."""
    from PIL import Image

    from vit_jax.data.sources.datasets import open_dataset

    folder.mkdir(parents=True, exist_ok=True)
    source = open_dataset("digits").split("test")
    paths = []
    for index in range(NUM_IMAGES):
        example: Any = source[index]
        label = source.class_names[example.label]
        path = folder / f"{index}_is_{label}.png"
        Image.fromarray(example.image.squeeze(-1)).save(path)
        paths.append(str(path))
    return paths


def _show(workdir: pathlib.Path, numbers: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Handwritten digits, accuracy on the 360 held-out images")
    for column in ("model", "held-out accuracy", "where"):
        table.add_column(column)
    rows = (
        ("pretrained at 32 × 32", "pretrained", "pretrain"),
        ("fine-tuned at 40 × 40 from it", "finetuned", "finetune"),
        ("control: from random weights", "control", "control"),
    )
    for title, name, part in rows:
        table.add_row(title, f"{numbers[name]:.1%}", str(workdir / part))
    console = Console()
    console.print(table)
    console.print(
        f"{numbers['seconds']:.0f} seconds of work; the same numbers are in "
        f"{workdir / RESULT}.\nTry it on a picture of your own: "
        f"{_python()} -m vit_jax.predict --checkpoint={workdir / 'finetune'} PICTURE\n"
        "Train again: make quickstart FRESH=1",
        soft_wrap=True,
    )


if __name__ == "__main__":
    command.run(main, FLAGS)
