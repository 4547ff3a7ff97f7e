"""Metrics in Weights & Biases, if `config.wandb_project` is set."""

import importlib.util
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.checkpoints.buckets import in_bucket
from vit_jax.checkpoints.workdir import locate, write_atomically
from vit_jax.config import Config, to_plain
from vit_jax.train.processes import cluster

logger = logging.getLogger(__name__)

# In the work directory: the ID of the run there, so that a resumed run continues it.
ID_FILE = "wandb_run_id.txt"


def missing_wandb(config: Config) -> list[str]:
    """Lists why metrics cannot be sent, before anything is compiled."""
    if config.wandb_project and importlib.util.find_spec("wandb") is None:
        return [
            f"wandb_project={config.wandb_project!r} needs the package wandb, which is "
            "not installed; pip install 'vit_jax[wandb]', or leave the key empty"
        ]
    return []


def wandb_runs(config: Config, workdir: str) -> "list[WandbRun]":
    """Makes the run to report to; none in processes other than the first."""
    wanted = config.wandb_project and cluster.first()
    return [WandbRun(config, locate(workdir))] if wanted else []


class WandbRun:
    """A run in Weights & Biases; a failure is logged once and never ends training."""

    def __init__(self, config: Config, workdir: Path):
        """Starts the run, or continues the one of this work directory."""
        file = workdir / ID_FILE
        self._run: Any = None
        try:
            import wandb  # pyright: ignore[reportMissingImports]

            if not file.exists():
                write_atomically(file, uuid.uuid4().hex + "\n")
            self._run = wandb.init(
                project=config.wandb_project,
                id=file.read_text().strip(),
                name=config.name,
                resume="allow",
                # Its own files need a disk; None is its default directory.
                dir=None if in_bucket(workdir) else str(workdir),
                config=to_plain(config),
                allow_val_change=True,  # some keys may change when a run resumes
            )
        except Exception as error:
            self._give_up(error)

    def write(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Sends the points that TensorBoard gets."""
        values = {f"{split}/{name}": number for name, number in numbers.items()}
        try:
            if self._run is not None:
                # Weights & Biases drops points that a resumed run sends again.
                self._run.log(values, step=step)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Sends the remaining points and ends the run."""
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        logger.warning("Weights & Biases gets no more metrics: %s", error)
