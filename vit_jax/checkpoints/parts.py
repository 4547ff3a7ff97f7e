"""The parts of a checkpoint, Orbax's handlers for them, and the errors these raise."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.checkpoints.buckets import in_bucket
from vit_jax.checkpoints.manifest import MANIFEST, check_manifest
from vit_jax.errors import UserError

logger = logging.getLogger(__name__)

# Each part is a folder of this name in WORKDIR/checkpoints/<step>.
PARAMS, EMA, OPTIMIZER, OBJECTIVE = "params", "ema", "optimizer", "objective"
# What the optimiser's own averaging makes of the parameters. A run never restores it.
OPTIMIZER_AVERAGES = "optimizer_averages"
# Averages besides `EMA`: a dict with a tree for each decay.
AVERAGES = "averages"
METADATA = "metadata"
# Orbax has this in a folder's name until the folder is complete.
UNFINISHED = ".orbax-checkpoint-tmp"
_ARRAYS = (ocp.args.PyTreeSave, ocp.args.PyTreeRestore)
_JSON = (ocp.args.JsonSave, ocp.args.JsonRestore)


class DamagedError(UserError):
    """A checkpoint whose files changed after it was saved; an older one may be used."""


def average_key(decay: float) -> str:
    """Names the average with a decay in the part `AVERAGES`, as in "0_999"."""
    # Orbax joins the keys of a tree with dots.
    return str(float(decay)).replace(".", "_")


def handlers(*names: str) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Registers Orbax's handlers for the named parts only; it ignores all others."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name in names:
        if name == METADATA:
            handler, types = ocp.JsonCheckpointHandler(), _JSON
        else:
            handler, types = (
                ocp.PyTreeCheckpointHandler(type_handler_registry=_array_types()),
                _ARRAYS,
            )
        for arguments in types:
            registry.add(name, arguments, handler)
    return registry


def _array_types() -> Any:
    """Returns Orbax's handlers for single arrays."""
    arrays = ocp.type_handlers.ArrayHandler(
        # In bytes. Of a smaller replicated array one device writes everything, because
        # slicing it for all of them takes longer.
        min_slice_bytes_for_replica_parallel=2**20
    )
    return ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )


def reader(name: str) -> ocp.Checkpointer:
    """Returns a reader of one part, which unlike a manager never changes the folder."""
    handler = ocp.CompositeCheckpointHandler(handler_registry=handlers(name))
    return ocp.Checkpointer(handler)


@contextlib.contextmanager
def sound(folder: Path, *parts: str) -> Iterator[None]:
    """Compares the checksums of parts, then explains errors while they are read.

    Raises:
      DamagedError: the files changed after they were written; without checksums, any
        error while reading.
      UserError: the user may not read them, or reading fails although the checksums
        match.
    """
    difference = ""
    try:
        if difference := check_manifest(folder, parts):
            raise ValueError(difference)
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # out of memory, which says nothing about the files
    # Damage can surface as any exception of Orbax or TensorStore.
    except Exception as error:
        if closed := _inaccessible(folder):
            raise UserError(
                f"the checkpoint {folder} cannot be read: {closed} is not accessible "
                "to this user; make it readable."
            ) from error
        why = difference or f"it cannot be read: {reason(error)}"
        if not difference and (folder / MANIFEST).exists():
            # The files are as they were written, so an older checkpoint is no better.
            raise UserError(
                f"the checkpoint {folder} matches its checksums, but {why}."
            ) from error
        raise DamagedError(f"the checkpoint {folder} is damaged ({why}).") from error


def _inaccessible(folder: Path) -> str:
    """Finds a path in (or above) the folder that the user may not read; "" if none."""
    if in_bucket(folder):
        return ""  # a bucket's own errors are clear enough
    closed = []

    def look(error: OSError) -> None:
        closed.append(error.filename)

    for where, _, names in os.walk(folder, onerror=look):
        paths = [where, *(os.path.join(where, name) for name in names)]
        closed += [path for path in paths if not os.access(path, os.R_OK)]
    return os.fspath(closed[0]) if closed else ""


def reason(error: BaseException) -> str:
    """Summarises in a few words why reading or writing failed."""
    # TensorStore's messages are long; the operating system's error is a number in them.
    text = str(error)
    if found := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # The message ends with the specification; the cause is right before that.
    said = " ".join(text.partition("[tensorstore_spec")[0].split())
    return f"{type(error).__name__}: {'…' * (len(said) > 200)}{said[-200:]}"


def _keep_quiet(record: logging.LogRecord) -> bool:
    """Drops Orbax's log records, which include tracebacks of its threads.

    Every failure reaches our callers as an exception, and is explained once, there.
    """
    # When a full disk ends several writes, asyncio reports those that nobody awaited.
    said = f"{record.pathname} {record.getMessage()}"
    signs = (f"{os.sep}orbax{os.sep}", UNFINISHED, "tensorstore_spec")
    from_orbax = any(sign in said for sign in signs)
    return not from_orbax or logger.isEnabledFor(logging.DEBUG)


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_keep_quiet)
