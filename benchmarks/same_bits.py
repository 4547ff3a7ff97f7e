"""Bitwise comparison of reduced recipes trained with two versions of the code.

    python benchmarks/same_bits.py COMMIT [--devices=1,8] [--recipes=NAMES] [--keep=DIR]
    python benchmarks/same_bits.py --write_golden

The first trains each recipe of tests/golden/reduced_recipes.py for 20 steps, with the
code of COMMIT (in a separate worktree) and with the working tree, on 1 and on 8
simulated devices of this machine. Both run only `python -m vit_jax.main` and are
compared through metrics.jsonl and the checkpoints: every metric, parameter, averaged
parameter and number of the optimiser's state has to be bitwise equal. Exits with 1 if
anything differs. `--keep` leaves the work directories in DIR.

Other processors, XLA versions and numbers of devices give other bits, so this is not a
test. The second form writes, from the working tree, the losses with which
tests/end_to_end/test_golden_losses.py compares, to 1e-5. The changelog mentions every
change that moves these numbers on purpose.

Takes ten to twenty minutes on two cores.
"""

import argparse
import contextlib
import json
import os
import pathlib
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

EIGHT = "--xla_force_host_platform_device_count=8"
REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"
LOSSES = GOLDEN / "reduced_losses.json"
REDUCED = runpy.run_path(str(GOLDEN / "reduced_recipes.py"))


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("commit", nargs="?")
    parser.add_argument("--devices", default="1,8")
    parser.add_argument("--recipes", default="")
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--write_golden", action="store_true")
    options = parser.parse_args()
    chosen = options.recipes.split(",") if options.recipes else [*REDUCED["RECIPES"]]
    if unknown := set(chosen) - set(REDUCED["RECIPES"]):
        parser.error(f"{unknown}: choose from {', '.join(REDUCED['RECIPES'])}")
    if bool(options.commit) == options.write_golden:
        parser.error("give a commit, or --write_golden")
    with contextlib.ExitStack() as stack:
        folder = options.keep or pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory())
        )
        if options.write_golden:
            _write_golden(folder)
            return
        before = stack.enter_context(_worktree(options.commit))
        differences = 0
        for devices in map(int, options.devices.split(",")):
            for name in chosen:
                runs = [
                    train(name, tree, devices, folder / f"{name}-{devices}-{which}")
                    for tree, which in ((before, options.commit), (REPOSITORY, "tree"))
                ]
                count, different = compare(*runs)
                verdict = f"{count} numbers the same"
                if different:
                    verdict = f"{len(different)} DIFFER: {'; '.join(different[:5])}"
                print(f"{name}, {devices} devices: {verdict}", flush=True)
                differences += len(different)
        sys.exit(differences > 0)


def train(
    name: str, tree: pathlib.Path, devices: int, workdir: pathlib.Path
) -> pathlib.Path:
    """Trains a recipe with the code in `tree`; returns the work directory."""
    flags = [*REDUCED["command_line"](name, tree), f"--workdir={workdir}"]
    command = [sys.executable, "-m", "vit_jax.main", *flags]
    done = subprocess.run(
        command,
        cwd=tree,
        env={
            **os.environ,
            "PYTHONPATH": str(tree),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"in {tree}: {shlex.join(command)}\n{done.stderr}")
    return workdir


def compare(one: pathlib.Path, other: pathlib.Path) -> tuple[int, list[str]]:
    """Counts the numbers of two runs, and names those that differ."""
    ours, theirs = _numbers(one), _numbers(other)
    names = sorted(ours.keys() | theirs.keys())
    different = [
        name
        for name in names
        if name not in ours
        or name not in theirs
        or ours[name].tobytes() != theirs[name].tobytes()
    ]
    return sum(x.size for x in ours.values()), different


def _numbers(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads everything that a run has measured and saved, by name."""
    # Orbax restores arrays onto as many devices as they were saved from.
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": EIGHT}
    import jax
    import orbax.checkpoint as ocp

    found = {}
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        at = f"step {line.pop('step')} {line.pop('split')}"
        found |= {f"{at} {key}": np.asarray(value) for key, value in line.items()}
    # Read by Orbax alone, independently of either version's own reader.
    for part in sorted((workdir / "checkpoints").glob("*/*/_METADATA")):
        tree = ocp.PyTreeCheckpointer().restore(part.parent.resolve())
        name = f"{part.parent.parent.name}/{part.parent.name}"
        for path, leaf in jax.tree.leaves_with_path(tree):
            key = jax.tree_util.keystr(path, simple=True, separator="/")
            found[f"{name}/{key}"] = np.asarray(leaf)
    return found


def _write_golden(folder: pathlib.Path) -> None:
    losses = {}
    for name in REDUCED["RECIPES"]:
        workdir = train(name, REPOSITORY, 8, folder / name)
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        losses[name] = [
            [line["step"], line["split"], line["loss"]]
            for line in map(json.loads, lines)
        ]
    rows = ",\n".join(
        f"{json.dumps(name)}: [\n  "
        + ",\n  ".join(json.dumps(row) for row in found)
        + "\n ]"
        for name, found in losses.items()
    )
    LOSSES.write_text(f"{{{rows}}}\n")


@contextlib.contextmanager
def _worktree(commit: str) -> Iterator[pathlib.Path]:
    """Checks out the commit in a temporary worktree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder, "tree")
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", tree, commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)


if __name__ == "__main__":
    main()
