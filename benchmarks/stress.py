"""Stress test: kills a training run at random times and looks for any trace of it.

  python benchmarks/stress.py [--kills=100] [--processes=1|2] [--steps=300] [--seed=0]
      [--lanes=2] [--folder=DIR]

A small model on the digits is trained once without any interruption. Then the same
command runs in another directory and gets SIGKILL at a random time, from the start of
the interpreter to its end. With two processes one of them gets it, at a random time
after they have connected, and the other has to end by itself, with a message and status
75. The same command is started and killed again until a run reaches its end: it must
have written the same metrics and the same parameters, bit for bit. After every kill:

- The newest complete checkpoint has the reference's parameters of that step, and the
  metrics up to there are the reference's.
- Its save was started no earlier than the last but one: a save starts every ten steps,
  and waits for the one before. So the loss is one interval, plus the steps that ran
  while the last save was still being written.
- The next start continues from it.

Each kill is a line of DIR/kills_PROCESSES.jsonl; called again with the same folder, the
command continues with the kills that are missing. `lanes` runs are killed side by side.

Exits with 0 if nothing was found, 1 otherwise.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoints.reading import load_params
from vit_jax.train.processes.peers import GONE

SAVE_EVERY = 10  # steps
DEVICES = 2  # of all processes together
# Seconds. Generous, as the machine may have other work; the slowest end is reported.
MEETING, ENDING, TRAINING = 900.0, 300.0, 3600.0
# When a run is killed: this share before its first step; the others at most this many
# seconds after a step, all of which, including the last one, are equally likely.
AT_THE_START, A_FEW_STEPS, THE_END = 0.2, 0.3, 3.0

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


class Run:
    """A run of the command in one or several processes; its output goes to files."""

    def __init__(self, stress: "Stress", workdir: pathlib.Path, *flags: str):
        processes = stress.processes
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        devices = f"--xla_force_host_platform_device_count={DEVICES // processes}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}",
            "JAX_COMPILATION_CACHE_DIR": str(stress.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.workdir = workdir
        self.logs = [
            stress.folder / f"{workdir.name}.{k}.log" for k in range(processes)
        ]
        self.processes = []
        for number, log in enumerate(self.logs):
            joining = [
                f"--coordinator_address=localhost:{port}",
                f"--num_processes={processes}",
                f"--process_id={number}",
            ]
            command = [
                *(sys.executable, "-m", "vit_jax.main"),
                f"--config={stress.folder / 'recipe.py'}:{stress.steps}",
                f"--workdir={workdir}",
                *(joining if processes > 1 else []),
                *flags,
            ]
            with open(log, "wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        command, stdout=output, stderr=output, env=environment
                    )
                )

    def wait_until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Waits until it is true or the run ends; returns whether it was in time."""
        end = time.monotonic() + seconds
        while not true() and not self.ended():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def end(self, seconds: float = 0.0) -> list[int | None]:
        """Returns the exit statuses; kills late processes, whose status is None."""
        self.wait_until(lambda: False, seconds)
        found = [process.poll() for process in self.processes]
        for process in self.processes:
            process.kill()
            process.wait()
        return found

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def met(self) -> bool:
        """Tells whether the processes have exchanged anything."""
        return len(self.logs) == 1 or b"[Gloo]" in self.logs[0].read_bytes()

    def said(self, number: int = 0) -> str:
        return self.logs[number].read_text(errors="replace")

    def complain(self, what: str) -> None:
        lines = [f"{self.workdir.name}: {what}; the logs end:"]
        for number, log in enumerate(self.logs):
            lines += [f"--- {log}", *self.said(number).splitlines()[-60:]]
        print("\n".join(lines), file=sys.stderr, flush=True)


@dataclasses.dataclass
class Stress:
    """The planned kills, and the reference that their outcomes are compared with."""

    folder: pathlib.Path
    kills: int
    processes: int
    steps: int
    seed: int
    lanes: int = 1
    recipe: str = RECIPE
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / f"kills_{self.processes}.jsonl"
        if self.file.exists():
            self.records = [*map(json.loads, self.file.read_text().splitlines())]
        made = {record["kill"] for record in self.records if "kill" in record}
        self._waiting = [n for n in range(self.kills, 0, -1) if n not in made]
        self._lock = threading.Lock()
        recipe = self.recipe.replace("SAVE_EVERY", str(SAVE_EVERY))
        (self.folder / "recipe.py").write_text(recipe)

    def run(self) -> dict[str, Any]:
        """Makes the kills; returns the summary."""
        if self._waiting:
            self._train_reference()
            lanes = [
                threading.Thread(target=self._lane, args=(f"lane{number}",))
                for number in range(self.lanes)
            ]
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
        return summary(self.records)

    def _train_reference(self) -> None:
        self.reference = self._empty("reference")
        # Keeps all checkpoints for comparison; that changes no number.
        run = Run(self, self.reference, f"--config.keep_checkpoints={self.steps}")
        run.wait_until(run.met, MEETING)
        met = time.monotonic()
        run.wait_until(lambda: bool(lines(self.reference)), TRAINING)
        self.until_first_step = time.monotonic() - met
        if any(status != 0 for status in run.end(TRAINING)):
            run.complain("the run without interruptions failed")
            sys.exit(1)
        self.expected = lines(self.reference)
        print(f"reference: {time.monotonic() - met:.1f} s", file=sys.stderr, flush=True)

    def _empty(self, name: str) -> pathlib.Path:
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _lane(self, name: str) -> None:
        """Kills runs one after another until no kill is left; the last one may end."""
        chance = random.Random(f"{self.seed} {name} {len(self.records)}")
        number, workdir = self._next(), self._empty(name)
        while number or workdir.exists():
            before = newest(workdir), lines(workdir)
            run = Run(self, workdir)
            run.wait_until(run.met, MEETING)
            # A run that is already complete has nothing left to lose.
            spared = not number or before[0] == self.steps
            self._wait_for_a_moment(run, None if spared else chance, *before)
            if not spared and not run.ended():
                self._kill(run, number, chance.randrange(self.processes), *before)
                number = self._next()
            else:
                self._compare_end(run, before[0])
                workdir = self._empty(name)

    def _wait_for_a_moment(
        self, run: Run, chance: random.Random | None, start: int, written: Any
    ) -> None:
        """Waits for a random moment; without `chance`, for the end."""

        def reached(step: int) -> bool:
            # As long as nothing has changed, these belong to the run before.
            there = lines(run.workdir)
            return there != written and last_step(there) >= step

        seconds = TRAINING
        if chance and chance.random() < AT_THE_START:
            seconds = chance.uniform(0, self.until_first_step)
        elif chance:
            # Counted in steps, because their speed on a busy machine is unknown.
            goal = chance.randint(start + 1, self.steps)
            run.wait_until(lambda: reached(goal), TRAINING)
            seconds = chance.uniform(0, THE_END if goal == self.steps else A_FEW_STEPS)
        run.wait_until(lambda: False, seconds)

    def _next(self) -> int:
        """Returns the number of the next kill; 0 if there is none left."""
        with self._lock:
            return self._waiting.pop() if self._waiting else 0

    def _kill(
        self, run: Run, number: int, victim: int, start: int, written: Any
    ) -> None:
        """Kills a process, and checks the reaction of the others and the files left."""
        there = newest(run.workdir)
        run.processes[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        status = run.end(ENDING)
        seconds = time.monotonic() - killed
        others = [k for k in range(self.processes) if k != victim]
        left = what_is_left(run.workdir, self.reference, self.expected)
        stepped = lines(run.workdir) != written
        if not stepped:
            left["lost"] = 0
        record = {
            "kill": number,
            "victim": victim,
            "stepped": stepped,
            **left,
            "vanished": there > left["newest"],
            "wrong_start": not went_on(run.said(), start),
            "status": status,
            "seconds_to_end": round(seconds, 1) if others else 0.0,
            "hang": None in status,
            # 0: it had finished all its work.
            "unexpected_end": any(
                status[k] not in (GONE, 0, None)
                or (status[k] == GONE and "no longer responds" not in run.said(k))
                for k in others
            ),
        }
        self._note(run, record)

    def _compare_end(self, run: Run, start: int) -> None:
        """Compares a run that reached its end with the reference."""
        status = run.end()
        left = what_is_left(run.workdir, self.reference, self.expected)
        same = left["newest"] == self.steps and lines(run.workdir) == self.expected
        record = {
            "end": run.workdir.name,
            "mismatch": left["mismatch"] or not same,
            "wrong_start": not went_on(run.said(), start),
            "status": status,
            "hang": None in status,
            "unexpected_end": bool(set(status) - {0, None}),
        }
        self._note(run, record)

    def _note(self, run: Run, record: dict[str, Any]) -> None:
        with self._lock:
            self.records.append(record)
            with self.file.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, file=sys.stderr, flush=True)
            if any(record.get(kind) for kind in WRONG):
                run.complain(f"WRONG: {record}")


# Failures: a flag in each record, a count in the summary.
WRONG = (
    *("mismatch", "older_than_an_interval", "vanished", "wrong_start"),
    *("hang", "unexpected_end"),
)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarises all kills and ends."""
    kills = [record for record in records if "kill" in record]
    lost = [record["lost"] for record in kills]
    return {
        "kills": len(kills),
        "before_a_step": sum(not record["stepped"] for record in kills),
        "ends_compared": sum("end" in record for record in records),
        "checkpoints_compared": sum(record["newest"] > 0 for record in kills),
        **{kind: sum(bool(r.get(kind)) for r in records) for kind in WRONG},
        "most_lost": max(lost, default=0),
        "lost_more_than_an_interval": sum(steps > SAVE_EVERY for steps in lost),
        "slowest_end": max((r["seconds_to_end"] for r in kills), default=0.0),
    }


def what_is_left(
    workdir: pathlib.Path, reference: pathlib.Path, expected: list[tuple[int, str]]
) -> dict[str, Any]:
    """Checks the files of a killed run: the reference's beginning, long enough."""
    whole, written = newest(workdir), lines(workdir)
    last = last_step(written)
    # The step after it ran, so this save had started and the one before was complete.
    begun = (last - 1) // SAVE_EVERY * SAVE_EVERY
    kept = [line for line in written if line[0] <= whole]
    same = kept == expected[: len(kept)] and last_step(kept) == whole
    if whole:
        trees = (load_params(workdir, whole), load_params(reference, whole))
        same &= jax.tree.all(jax.tree.map(np.array_equal, *trees))
    return {
        "step": last,
        "newest": whole,
        "lost": last - whole,
        "older_than_an_interval": whole < begun - SAVE_EVERY,
        "mismatch": not same,
    }


def last_step(written: list[tuple[int, str]]) -> int:
    """Returns the last step of some lines; 0 if there are none."""
    return max((step for step, _ in written), default=0)


def newest(workdir: pathlib.Path) -> int:
    """Returns the step of the newest complete checkpoint; 0 before the first."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max([int(name) for name in names if name.isdecimal()], default=0)


def went_on(said: str, step: int) -> bool:
    """Tells whether a run resumed from that step, if it got far enough to log it."""
    found = re.findall(r"from the checkpoint of step (\d+)", said)
    return found in ([], [str(step)])


def lines(workdir: pathlib.Path) -> list[tuple[int, str]]:
    """Reads the complete lines of the metrics, each with its step."""
    file = workdir / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [(json.loads(line)["step"], line) for line in text.split("\n")[:-1]]


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--folder", type=pathlib.Path)
    asked = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as temporary:
        asked["folder"] = asked["folder"] or pathlib.Path(temporary)
        found = Stress(**asked).run()
    print(json.dumps(found))
    sys.exit(1 if any(found[kind] for kind in WRONG) else 0)


if __name__ == "__main__":
    main()
