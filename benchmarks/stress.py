"""Kills a training run at random times, again and again, and looks for any trace of it.

  python benchmarks/stress.py [--kills=100] [--processes=1|2] [--steps=300] [--seed=0]

A small model on the digits is trained once without any interruption. Then the same
command runs in another directory and gets SIGKILL at a random time, from the start of
the interpreter to the last step; with two processes one of them does, at a random time
after they have met, and the other has a minute to end by itself. Started again until
it is done, it must have written the same metrics and the same parameters, bit for bit.
Also after every kill: what is there up to the newest checkpoint is the reference's, and
no more is lost than the steps since the last save was begun, and those of that save.

Exit status 0 if nothing was found, 1 otherwise.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from vit_jax.checkpoints.reading import load_params
from vit_jax.train.peers import GONE

SAVE_EVERY = 10  # steps
A_MINUTE = 60.0  # for the survivors
DEVICES = 2  # of all processes together

RECIPE = """
from vit_jax.config import default_config

def get_config(steps):
    config = default_config()
    config.name = "stress"
    config.image_size = (8,)
    config.batch_size = 16
    config.eval_batch_size = 120
    config.total_steps = int(steps)
    config.log_every = 1
    config.eval_every = 40
    config.checkpoint_every = SAVE_EVERY
    config.learning_rate = 0.01
    config.weight_decay = 0.1
    config.augment.train = "resize(10)|random_crop"
    config.model.variant = "Ti/4"
    config.model.width = 16
    config.model.depth = 2
    config.model.mlp_dim = 32
    config.model.num_heads = 2
    config.model.dropout_rate = 0.1
    return config
"""


@dataclasses.dataclass
class Found:
    """What went wrong, and how much was tried."""

    kills: int = 0
    finished: int = (
        0  # runs that came to their end in spite of kills, and were compared
    )
    mismatches: int = 0
    lost_too_much: int = 0
    hangs: int = 0
    other: int = 0  # exit statuses that nobody expects
    most_lost: int = 0  # steps
    slowest_end: float = 0.0  # seconds until the other process had ended


class Run:
    """The command, in one or several processes; its output goes to files."""

    def __init__(self, folder: pathlib.Path, workdir: pathlib.Path, steps, processes):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        devices = f"--xla_force_host_platform_device_count={DEVICES // processes}"
        self.logs = [folder / f"{workdir.name}.{k}.log" for k in range(processes)]
        self.processes = []
        for number, log in enumerate(self.logs):
            joining = [
                f"--coordinator_address=localhost:{port}",
                f"--num_processes={processes}",
                f"--process_id={number}",
            ]
            with open(log, "wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [
                            *(sys.executable, "-m", "vit_jax.main"),
                            f"--config={folder / 'recipe.py'}:{steps}",
                            f"--workdir={workdir}",
                            *(joining if processes > 1 else []),
                        ],
                        stdout=output,
                        stderr=output,
                        env={
                            **os.environ,
                            "JAX_PLATFORMS": "cpu",
                            "XLA_FLAGS": devices,
                        },
                    )
                )

    def wait(self, seconds: float) -> list[int | None]:
        """The exit statuses; None of what has not ended until then, and is killed."""
        end = time.monotonic() + seconds
        found: list[int | None] = []
        for process in self.processes:
            try:
                found.append(process.wait(max(end - time.monotonic(), 0)))
            except subprocess.TimeoutExpired:
                found.append(None)
        for process in self.processes:
            process.kill()
            process.wait()
        return found

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def met(self) -> bool:
        """Whether the processes have exchanged anything."""
        return len(self.logs) == 1 or b"[Gloo]" in self.logs[0].read_bytes()

    def say(self, what: str) -> None:
        print(f"{what}; the logs end:", file=sys.stderr)
        for log in self.logs:
            print(f"--- {log}", file=sys.stderr)
            text = log.read_text(errors="replace")
            print("\n".join(text.splitlines()[-60:]), file=sys.stderr)


def stress(folder: pathlib.Path, kills: int, processes: int, steps: int, seed: int):
    """Returns what was `Found`."""
    (folder / "recipe.py").write_text(RECIPE.replace("SAVE_EVERY", str(SAVE_EVERY)))
    chance, found = random.Random(seed), Found()
    reference = folder / "reference"
    started = time.monotonic()
    first = Run(folder, reference, steps, processes)
    while not first.met() and not first.ended():
        time.sleep(0.01)
    met = time.monotonic()
    if any(first.wait(3600)):
        first.say("the run without interruptions failed")
        sys.exit(1)
    duration = time.monotonic() - met
    expected = _lines(reference)
    print(f"reference: {time.monotonic() - started:.1f} s", file=sys.stderr)

    while found.kills < kills or found.finished == 0:
        workdir = folder / f"run{found.finished}"
        run = Run(folder, workdir, steps, processes)
        while not run.met() and not run.ended():
            time.sleep(0.01)
        if found.kills < kills:
            end = time.monotonic() + chance.uniform(0, duration)
            while time.monotonic() < end and not run.ended():
                time.sleep(0.002)
        else:
            end = time.monotonic() + 20 * duration + 600
            while time.monotonic() < end and not run.ended():
                time.sleep(0.1)
        if run.ended():
            status = run.wait(0)
            if any(status):
                found.other += 1
                run.say(f"ended with {status}")
            found.finished += 1
            found.mismatches += not _same_end(workdir, reference, steps)
            continue
        if found.kills >= kills:
            found.hangs += 1
            run.wait(0)
            run.say("does not end")
            break
        found.kills += 1
        killed = chance.randrange(processes)
        run.processes[killed].send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        status = run.wait(A_MINUTE)
        found.slowest_end = max(found.slowest_end, time.monotonic() - killed_at)
        others = status[:killed] + status[killed + 1 :]
        if None in others:
            found.hangs += 1
            run.say(f"a minute after the end of process {killed}: {status}")
        # 0: had done all its work.
        elif set(others) - {GONE, 0}:
            found.other += 1
            run.say(f"ended with {status}")
        _check_rest(workdir, expected, found)
        print(
            f"kill {found.kills}: process {killed} at step "
            f"{max([step for step, _ in _lines(workdir)], default=0)}, {status}",
            file=sys.stderr,
            flush=True,
        )
    return found


def _check_rest(workdir: pathlib.Path, expected, found: Found) -> None:
    """What a killed run has left: the reference's beginning, and not too little."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    whole = max([int(name) for name in names if name.isdecimal()], default=0)
    lines = _lines(workdir)
    written = max([step for step, _ in lines], default=0)
    found.most_lost = max(found.most_lost, written - whole)
    # Of the save in flight, and since it was begun.
    found.lost_too_much += written - whole > 2 * SAVE_EVERY
    kept = [line for line in lines if line[0] <= whole]
    found.mismatches += kept != expected[: len(kept)]


def _lines(workdir: pathlib.Path) -> list[tuple[int, str]]:
    """The whole lines of the metrics, each with its step."""
    file = workdir / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [(json.loads(line)["step"], line) for line in text.split("\n")[:-1]]


def _same_end(workdir: pathlib.Path, reference: pathlib.Path, steps: int) -> bool:
    trees = (load_params(workdir, steps), load_params(reference, steps))
    same = jax.tree.all(jax.tree.map(np.array_equal, *trees))
    return same and _lines(workdir) == _lines(reference)


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = stress(
            pathlib.Path(folder), asked.kills, asked.processes, asked.steps, asked.seed
        )
    print(json.dumps(dataclasses.asdict(found)))
    bad = found.mismatches, found.lost_too_much, found.hangs, found.other
    sys.exit(1 if any(bad) else 0)


if __name__ == "__main__":
    main()
