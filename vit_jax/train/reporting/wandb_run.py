"""Metrics to Weights & Biases, for those who ask for it: `config.wandb_project`."""

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

# In the work directory: which run it is there, so that a resumed one goes on with it.
ID_FILE = "wandb_run_id.txt"


def missing_wandb(config: Config) -> list[str]:
    """Why it cannot work, known before anything is compiled."""
    if config.wandb_project and importlib.util.find_spec("wandb") is None:
        return [
            f"wandb_project={config.wandb_project!r} needs the package wandb: "
            "pip install 'vit_jax[wandb]', or leave it empty"
        ]
    return []


def wandb_runs(config: Config, workdir: str) -> "list[WandbRun]":
    """One, or none: only the first process reports."""
    wanted = config.wandb_project and cluster.first()
    return [WandbRun(config, locate(workdir))] if wanted else []


class WandbRun:
    """One run there. What fails is said once and never ends the training."""

    def __init__(self, config: Config, workdir: Path):
        """Starts the run, or goes on with the one of this work directory."""
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
                # Its own files are on a disk; without a name, where it puts them.
                dir=None if in_bucket(workdir) else str(workdir),
                config=to_plain(config),
                allow_val_change=True,  # some keys may, when a run goes on
            )
        except Exception as error:
            self._give_up(error)

    def write(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """The same points as TensorBoard's."""
        values = {f"{split}/{name}": number for name, number in numbers.items()}
        try:
            if self._run is not None:
                # What a resumed run says again of earlier steps is dropped there.
                self._run.log(values, step=step)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Sends what is left."""
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        logger.warning("Weights & Biases gets no more metrics: %s", error)
