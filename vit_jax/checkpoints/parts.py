"""The parts of a checkpoint: how Orbax writes and reads them, how that can fail."""

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

# The parts of a checkpoint: a folder each in WORKDIR/checkpoints/<step>.
PARAMS, EMA, OPTIMIZER, OBJECTIVE = "params", "ema", "optimizer", "objective"
METADATA = "metadata"
# What Orbax calls a folder until it is complete.
UNFINISHED = ".orbax-checkpoint-tmp"
_ARRAYS = (ocp.args.PyTreeSave, ocp.args.PyTreeRestore)
_JSON = (ocp.args.JsonSave, ocp.args.JsonRestore)


class DamagedError(UserError):
    """A checkpoint that is not as it was written; an older one may be used."""


def handlers(*names: str) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Orbax reads and writes the parts named, and leaves the others alone."""
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
    """How Orbax writes and reads single arrays."""
    arrays = ocp.type_handlers.ArrayHandler(
        # What is smaller is written by one of the devices that hold it: to slice it for
        # all of them takes longer.
        min_slice_bytes_for_replica_parallel=2**20
    )
    return ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )


def reader(name: str) -> ocp.Checkpointer:
    """Reads one part; unlike a manager, it neither owns nor changes the directory."""
    handler = ocp.CompositeCheckpointHandler(handler_registry=handlers(name))
    return ocp.Checkpointer(handler)


@contextlib.contextmanager
def sound(folder: Path, *parts: str) -> Iterator[None]:
    """Around reading parts of a checkpoint, whose checksums are compared first.

    Raises:
      DamagedError: they are not as they were written; of a checkpoint without checksums
        also whatever reading it fails with.
      UserError: this user may not read them, or the like.
    """
    difference = ""
    try:
        if difference := check_manifest(folder, parts):
            raise ValueError(difference)
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # there is no room for it
    # Orbax and TensorStore raise whatever the damage led to.
    except Exception as error:
        if closed := _inaccessible(folder):
            raise UserError(
                f"the checkpoint {folder} cannot be read: {closed} is not accessible "
                "to this user; make it readable."
            ) from error
        why = difference or f"it cannot be read: {reason(error)}"
        if not difference and (folder / MANIFEST).exists():
            # Its files are as they were written, so no other checkpoint is better.
            raise UserError(f"of the checkpoint {folder}, {why}.") from error
        raise DamagedError(f"the checkpoint {folder} is damaged ({why}).") from error


def _inaccessible(folder: Path) -> str:
    """What within (or above) this user may not read, if anything; "" if all may be."""
    if in_bucket(folder):
        return ""  # its errors speak for themselves
    closed = []

    def look(error: OSError) -> None:
        closed.append(error.filename)

    for where, _, names in os.walk(folder, onerror=look):
        paths = [where, *(os.path.join(where, name) for name in names)]
        closed += [path for path in paths if not os.access(path, os.R_OK)]
    return os.fspath(closed[0]) if closed else ""


def reason(error: BaseException) -> str:
    """Why reading or writing failed, in a few words."""
    # TensorStore's messages are long; what the operating system said is a number in it.
    text = str(error)
    if found := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # It ends with what was to be done; before that the cause comes last.
    said = " ".join(text.partition("[tensorstore_spec")[0].split())
    return f"{type(error).__name__}: {'…' * (len(said) > 200)}{said[-200:]}"


def _keep_quiet(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs, tracebacks of its threads among it.

    Every failure reaches our callers as an error and is explained once, there.
    """
    # asyncio reports, of all writes that a full disk ends, those nobody awaited.
    said = f"{record.pathname} {record.getMessage()}"
    signs = (f"{os.sep}orbax{os.sep}", UNFINISHED, "tensorstore_spec")
    from_orbax = any(sign in said for sign in signs)
    return not from_orbax or logger.isEnabledFor(logging.DEBUG)


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_keep_quiet)
