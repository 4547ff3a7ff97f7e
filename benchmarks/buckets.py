"""Whether work directories in a bucket work, whatever stands behind its address.

  pip install 'vit_jax[s3]'    # or [gcs]
  python benchmarks/buckets.py --workdir=s3://BUCKET/FOLDER [--processes=2]

Trains the digits for six steps in the bucket and on a disk. In the bucket the newest
checkpoint is then damaged by one bit and the run repeated: it must say so and go on
from the one before. Exits with 1 unless both end with the same bits, as many
checkpoints as were asked for are left, and the model can be loaded. The folder must not
exist.

A service on this machine will do: pip install 'moto[server]'; moto_server -p 5000, and
AWS_ENDPOINT_URL=http://localhost:5000 with any AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY; or gcp-storage-emulator, with STORAGE_EMULATOR_HOST for gcsfs and
TENSORSTORE_GCS_HTTP_URL for TensorStore.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
from typing import Any

import jax
import numpy as np

import vit_jax
from vit_jax.checkpoints.reading import load_params, saved_steps
from vit_jax.checkpoints.workdir import CHECKPOINTS, locate

_FLAGS = (
    "--config=configs/pretrain.py:Ti/16,digits",
    *("--config.image_size=(16,)", "--config.augment.train=resize"),
    *("--config.model.depth=1", "--config.batch_size=16"),
    *("--config.eval_split=test[:64]", "--config.warmup_steps=1"),
    *("--config.total_steps=6", "--config.checkpoint_every=2"),
    *("--config.keep_checkpoints=2", "--config.log_every=1"),
)


def main() -> None:
    """Trains, damages, trains again, compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="s3:// or gs://")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    workdir = locate(asked.workdir)
    if saved_steps(workdir / CHECKPOINTS):
        sys.exit(f"{workdir} has checkpoints; pass a folder that does not exist")
    _train(asked.workdir, asked.processes)
    with tempfile.TemporaryDirectory() as disk:
        _train(disk, asked.processes)
        expected = load_params(disk)
    _compare(expected, load_params(asked.workdir), "on a disk")

    newest = workdir / CHECKPOINTS / "6"
    files = (newest / "params/d").iterdir()
    file = max(files, key=lambda path: len(path.read_bytes()))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    said = _train(asked.workdir, asked.processes)
    for text in ("checkpoints/6 is damaged", "resuming from the checkpoint of step 4"):
        if text not in said:
            sys.exit(f"{text!r} was not said, but:\n{said}")
    _compare(expected, load_params(asked.workdir), "with damage on the way")
    if (steps := saved_steps(workdir / CHECKPOINTS)) != [4, 6]:
        sys.exit(f"the checkpoints that are left are {steps}")
    print(f"{asked.workdir}: the same bits, {vit_jax.load(asked.workdir)}")


def _train(workdir: str, processes: int) -> str:
    """Runs the training command; what it said."""
    with socket.create_server(("localhost", 0)) as listening:
        port = listening.getsockname()[1]
    together = (
        f"--coordinator_address=localhost:{port}",
        f"--num_processes={processes}",
    )
    command = [sys.executable, "-m", "vit_jax.main", *_FLAGS, f"--workdir={workdir}"]
    running = [
        subprocess.Popen(
            [*command, *together, f"--process_id={number}"]
            if processes > 1
            else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    said = "".join(process.communicate()[0] for process in running)
    if any(process.returncode for process in running):
        sys.exit(f"training in {workdir} has failed:\n{said}")
    return said


def _compare(expected: Any, found: Any, where: str) -> None:
    same = jax.tree.map(np.array_equal, expected, found)
    if not all(jax.tree.leaves(same)):
        sys.exit(f"the parameters differ from those trained {where}")


if __name__ == "__main__":
    main()
