"""The choice of a run's attention: the fastest formulation that gives correct results.

It is impossible to know beforehand whether a kernel compiles, is correct and pays off
on the devices at hand. So a run on an accelerator tries the candidates once, with its
own shapes and on all of its devices. A candidate that fails costs speed, not the run.
The choice is kept in the work directory, so that the run continues with the same one
after any interruption.
"""

import dataclasses
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import vit_jax
from vit_jax.checkpoints.workdir import locate, write_atomically
from vit_jax.train.autotune.trial import REFERENCE, Trial
from vit_jax.train.model_from_config import attention_candidates
from vit_jax.train.processes import cluster
from vit_jax.train.setup import Setup

logger = logging.getLogger(__name__)

CHOICE_FILE = "attention.json"


def with_chosen_attention(
    setup: Setup, workdir: str, names: Sequence[str] = ()
) -> Setup:
    """Returns the run with the attention that `model.attention=auto` resolves to.

    All processes of a run call this together, and use the first one's decision.

    Args:
      setup: the run.
      workdir: the run's directory, which it has claimed.
      names: the candidates, by default those for the run's devices. A single one, as on
        the CPU, is used untried.
    """
    if setup.config.model.attention != "auto":
        return setup
    names = names or attention_candidates(
        setup.architecture, setup.model.dtype, setup.mesh
    )
    if len(names) < 2:
        return setup
    record = _Record(workdir, _circumstances(setup, names))
    known = names.index(record.choice) if record.choice in names else -1
    known, *crashed = _of_the_first(
        [known, *(name in record.crashed for name in names)]
    )
    if known >= 0:
        chosen = names[known]
        logger.info("attention is %s, as chosen when the run began", chosen)
    else:
        crashed = [name for name, once in zip(names, crashed, strict=True) if once]
        trial = _try(setup, record, names, crashed)
        # Each process has measured different times, so the first decides.
        [fastest] = _of_the_first([names.index(trial.fastest())])
        chosen = names[fastest]
        record.keep(chosen, trial)
        _tell(chosen, trial)
    return dataclasses.replace(setup, model=setup.model.clone(attention=chosen))


def _try(
    setup: Setup, record: "_Record", names: Sequence[str], crashed: Sequence[str]
) -> Trial:
    """Tries all candidates except those that have crashed a process before."""
    a: Any = setup.architecture
    shape = (_images(setup), a.num_tokens, a.num_heads, a.width // a.num_heads)
    trial = Trial(setup.mesh, shape, setup.model.dtype)
    trial.run(REFERENCE)
    for name in names:
        if name in crashed:
            trial.problems[name] = (
                f"crashed the process that tried it; remove {record.file} to try it "
                "again"
            )
        elif name != REFERENCE:
            record.begin(name)
            trial.run(name)
    return trial


def _tell(chosen: str, trial: Trial) -> None:
    for name, problem in trial.problems.items():
        if name == chosen:  # no formulation is known to be correct
            logger.warning("attention is %s untried: it %s", name, problem)
        else:
            logger.warning("attention is not %s: it %s", name, problem)
    times = (f"{name} {ms:.2f} ms" for name, ms in trial.milliseconds.items())
    logger.info(
        "attention is %s; a layer's forward and backward pass: %s",
        chosen,
        ", ".join(times) or "none",
    )


class _Record:
    """The record of the choice in the work directory; only the first process uses it.

    Attributes:
      file: its path.
      choice: the chosen formulation; "" if there is none for the same circumstances.
      crashed: formulations that were being tried when a process ended.
    """

    def __init__(self, workdir: str, circumstances: dict[str, Any]):
        self.file = locate(workdir) / CHOICE_FILE
        self._circumstances = circumstances
        self._first = cluster.first()
        found = self._read() if self._first else {}
        self.choice: str = found.get("choice", "")
        self.crashed: list[str] = found.get("trying", [])

    def begin(self, name: str) -> None:
        """Records that a trial begins, since it may crash the process."""
        self._write(trying=[*self.crashed, name])

    def keep(self, choice: str, trial: Trial) -> None:
        """Records the choice and the results, which ends the trials."""
        times = {name: round(ms, 3) for name, ms in trial.milliseconds.items()}
        self._write(choice=choice, milliseconds=times, problems=trial.problems)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            if found["circumstances"] == self._circumstances:
                return found
            logger.info(
                "attention: %s is for other circumstances; choosing again", self.file
            )
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            logger.warning("attention: %s is damaged and will be replaced", self.file)
        return {}

    def _write(self, **found: Any) -> None:
        if self._first:
            content = {"circumstances": self._circumstances, **found}
            write_atomically(self.file, json.dumps(content, indent=2) + "\n")


def _circumstances(setup: Setup, names: Sequence[str]) -> dict[str, Any]:
    """Returns everything that a choice depends on, as JSON values."""
    a: Any = setup.architecture
    device = setup.mesh.devices.flat[0]
    return {
        "candidates": list(names),
        "devices": device.device_kind,
        "mesh": dict(setup.mesh.shape),
        "processes": jax.process_count(),
        "images": _images(setup),
        "tokens": a.num_tokens,
        "heads": a.num_heads,
        "channels": a.width // a.num_heads,
        "dtype": str(setup.model.dtype),
        "vit_jax": vit_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "runtime": device.client.platform_version,
    }


def _images(setup: Setup) -> int:
    """Returns the number of images in a microbatch."""
    return setup.config.batch_size // setup.config.accum_steps


def _of_the_first(numbers: Sequence[int]) -> list[int]:
    """Returns the first process's numbers, in all processes."""
    said = np.asarray(numbers, np.int32)
    return np.asarray(multihost_utils.broadcast_one_to_all(said)).tolist()
