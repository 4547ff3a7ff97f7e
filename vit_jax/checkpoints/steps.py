"""Saving and restoring the state of a run, step by step, with Orbax."""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vit_jax.checkpoints.compare import compare_trees
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.workdir import CHECKPOINTS, CONFIG_FILE, locate
from vit_jax.errors import UserError

logger = logging.getLogger(__name__)

# The parts of a checkpoint: a folder each in WORKDIR/checkpoints/<step>.
_PARAMS, _OPTIMIZER, _METADATA = "params", "optimizer", "metadata"
# What Orbax calls a folder until it is complete.
_UNFINISHED = ".orbax-checkpoint-tmp"
_ARRAYS = (ocp.args.PyTreeSave, ocp.args.PyTreeRestore)
_JSON = (ocp.args.JsonSave, ocp.args.JsonRestore)


class Checkpoints:
    """The checkpoints of one run; a context manager, to be used by one run at a time.

    A checkpoint is written beside its final place and renamed when it is complete, so
    one that can be seen is whole, whatever happened to the process. Older ones are
    deleted only after that.

    Leave it through `with` or `close()`: a save that is in flight when the interpreter
    exits can no longer finish, and Python waits for it forever.
    """

    def __init__(self, workdir: str | os.PathLike[str], keep: int):
        """Opens or creates WORKDIR/checkpoints and removes what killed saves left.

        Args:
          workdir: the run's directory.
          keep: how many of the newest checkpoints stay.

        Raises:
          UserError: the directory cannot be written to.
        """
        if keep < 1:
            raise ValueError(f"keep={keep}; at least one checkpoint has to stay.")
        self._directory = locate(workdir) / CHECKPOINTS
        self._in_flight: int | None = None
        self._closed = False
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=checkpoint_managers.LatestN(keep),
                ),
                handler_registry=_handlers(_PARAMS, _OPTIMIZER, _METADATA),
            )
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self._directory} "
                f"({error.strerror}); make it writable or pass another --workdir."
            ) from error

    def latest_step(self) -> int | None:
        """The newest complete checkpoint; None before the first."""
        return max(_steps(self._directory), default=None)

    def save(
        self, step: int, params: Any, opt_state: Any, description: Description
    ) -> None:
        """Starts saving; returns when the arrays are copied, so they may be donated.

        Waits for an earlier save first. A step that is already saved is left as it is:
        the state is a function of the step.

        Args:
          step: finished updates.
          params: tree of arrays.
          opt_state: tree of arrays.
          description: what the checkpoint says of itself.

        Raises:
          UserError: this or an earlier save failed; names the step, the reason and the
            last good checkpoint, which is still there.
        """
        self.wait()
        latest = self.latest_step()
        if latest is not None and step <= latest:
            if step == latest:
                return
            raise ValueError(f"step {step} is older than the saved step {latest}")
        items = ocp.args.Composite(
            **{
                _PARAMS: ocp.args.PyTreeSave(params),
                _OPTIMIZER: ocp.args.PyTreeSave(opt_state),
                _METADATA: ocp.args.JsonSave(description.to_dict()),
            }
        )
        self._in_flight = step
        with self._failures_explained(OSError):
            self._manager.save(step, args=items, force=True)

    def restore(
        self, step: int, abstract_params: Any, abstract_opt_state: Any
    ) -> tuple[Any, Any, Description]:
        """Reads a checkpoint onto the devices that the abstract arrays name.

        Args:
          step: one of the saved steps.
          abstract_params: tree of `jax.ShapeDtypeStruct` with shardings.
          abstract_opt_state: the same, in optax's classes.

        Returns:
          Parameters, optimizer state and description.

        Raises:
          UserError: no such step, another model's or optimizer's tree, or damage.
        """
        self.wait()
        wanted = {_PARAMS: abstract_params, _OPTIMIZER: abstract_opt_state}
        for leaf in jax.tree.leaves(wanted):
            if getattr(leaf, "sharding", None) is None:
                raise ValueError(f"{leaf} has no sharding to restore onto")
        _choose(self._directory.parent, step)
        folder = self._directory / str(step)
        with _damage_explained(folder):
            saved: Any = self._manager.metadata(step).item_metadata
            found = {name: saved[name].tree for name in wanted}
        if difference := compare_trees(wanted, found, dtypes=True):
            raise UserError(
                f"the checkpoint {folder} is not of this model and optimizer:\n"
                f"{difference}\nPass the config it was trained with, or another "
                "--workdir; to start from its weights only, pass it as "
                "--config.pretrained."
            )
        items: dict[str, Any] = {
            name: ocp.args.PyTreeRestore(
                tree,
                restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
            )
            for name, tree in wanted.items()
        }
        items[_METADATA] = ocp.args.JsonRestore()
        with _damage_explained(folder):
            state = self._manager.restore(step, args=ocp.args.Composite(**items))
        description = Description.from_dict(state[_METADATA])
        return state[_PARAMS], state[_OPTIMIZER], description

    def wait(self) -> None:
        """Returns when the save in flight is complete.

        Raises:
          UserError: it failed; see `save`.
        """
        with self._failures_explained(Exception):
            self._manager.wait_until_finished()
        self._in_flight = None

    def check(self) -> None:
        """Raises what `wait` would if the save has failed already; never waits."""
        if self._in_flight is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for the save in flight and stops Orbax's threads; may be called twice.

        Raises:
          UserError: the save failed; see `save`.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type | None, *_: Any) -> None:
        try:
            self.close()
        except UserError as error:
            if exception_type is None:
                raise
            # What ended the run comes first; it must not be hidden by this.
            logger.error("%s", error)

    @contextlib.contextmanager
    def _failures_explained(self, kind: type[Exception]) -> Iterator[None]:
        try:
            yield
        except kind as error:
            step, self._in_flight = self._in_flight, None
            self._remove_unfinished()  # gives a full disk its space back
            self._manager.reload()  # Orbax has already forgotten the older steps
            last = self.latest_step()
            raise UserError(
                f"checkpoint at step {step} was not saved ({_reason(error)}); "
                + (
                    "there is no earlier one."
                    if last is None
                    else f"the last good one is step {last} at "
                    f"{self._directory / str(last)}."
                )
                + " Mend that and run the same command again to go on from there."
            ) from error

    def _remove_unfinished(self) -> None:
        # Before any of this run's saves and after a failed one, so none is in use.
        if jax.process_index() != 0:
            return
        for folder in self._directory.iterdir():
            if _UNFINISHED in folder.name:
                logger.info("removing %s, a save that was cut off", folder)
                shutil.rmtree(folder, ignore_errors=True)


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether there is a complete checkpoint to go on from."""
    return bool(_steps(locate(workdir) / CHECKPOINTS))


def has_checkpoints(workdir: str | os.PathLike[str]) -> bool:
    """Whether it holds a checkpoint, complete or not, by what the folders hold."""
    directory = locate(workdir) / CHECKPOINTS
    return any(
        (directory / str(step) / part).is_dir()
        for step in _steps(directory)
        for part in (_PARAMS, _METADATA)
    )


def load_description(
    workdir: str | os.PathLike[str], step: int | None = None
) -> Description:
    """What a checkpoint says of itself; reads none of its arrays.

    Args:
      workdir: a run's directory, which a running training may be writing to.
      step: which checkpoint; by default the newest.

    Raises:
      UserError: not a work directory, no such checkpoint, or a damaged one.
    """
    directory = locate(workdir)
    folder = directory / CHECKPOINTS / str(_choose(directory, step))
    with _damage_explained(folder), _reader(_METADATA) as reader:
        items = ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()})
        values = reader.restore(folder, args=items)[_METADATA]
    return Description.from_dict(values)


def load_params(workdir: str | os.PathLike[str], step: int | None = None) -> Any:
    """The parameters as numpy arrays; needs no devices and reads no optimizer state.

    Args:
      workdir: a run's directory, which a running training may be writing to.
      step: which checkpoint; by default the newest.

    Returns:
      A nested dict of numpy arrays.

    Raises:
      UserError: not a work directory, no such checkpoint, or a damaged one.
    """
    directory = locate(workdir)
    folder = directory / CHECKPOINTS / str(_choose(directory, step))
    with _damage_explained(folder), _reader(_PARAMS) as reader:
        tree = reader.metadata(folder).item_metadata[_PARAMS].tree
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        items = ocp.args.Composite(
            **{_PARAMS: ocp.args.PyTreeRestore(restore_args=as_numpy)}
        )
        return reader.restore(folder, args=items)[_PARAMS]


def _handlers(*names: str) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Orbax reads and writes the parts named, and leaves the others alone."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name in names:
        if name == _METADATA:
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


def _reader(name: str) -> ocp.Checkpointer:
    # Unlike a manager, it neither owns nor changes the directory.
    handler = ocp.CompositeCheckpointHandler(handler_registry=_handlers(name))
    return ocp.Checkpointer(handler)


def _steps(checkpoints: Path) -> list[int]:
    # A save in flight has another name until it is complete.
    if not checkpoints.is_dir():
        return []
    return sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdecimal())


def _choose(workdir: Path, step: int | None) -> int:
    if not (workdir / CHECKPOINTS).is_dir():
        raise UserError(f"{workdir} is not a work directory: {_contents(workdir)}.")
    steps = _steps(workdir / CHECKPOINTS)
    if not steps:
        raise UserError(
            f"{workdir} holds no complete checkpoint; train first, or pass another "
            "directory."
        )
    if step is not None and step not in steps:
        raise UserError(
            f"{workdir} holds no checkpoint of step {step}; there are "
            f"{', '.join(map(str, steps))}."
        )
    return steps[-1] if step is None else step


def _contents(path: Path) -> str:
    if not path.exists():
        return "there is nothing of that name"
    if not path.is_dir():
        return "it is a file"
    names = sorted(p.name for p in path.iterdir())
    if CONFIG_FILE in names:
        return "a run was started in it, but has saved nothing yet"
    some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"it holds {some or 'nothing'}, and no folder named {CHECKPOINTS}"


@contextlib.contextmanager
def _damage_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    # Orbax and TensorStore raise whatever the damage led to.
    except Exception as error:
        if closed := _inaccessible(folder):
            raise UserError(
                f"the checkpoint {folder} cannot be read: {closed} is not accessible "
                "to this user; make it readable."
            ) from error
        raise UserError(
            f"the checkpoint {folder} is damaged and cannot be read "
            f"({_reason(error)}); move that folder away to use the one before it."
        ) from error


def _inaccessible(folder: Path) -> str:
    """What within (or above) this user may not read, if anything; "" if all may be."""
    closed = []

    def look(error: OSError) -> None:
        closed.append(error.filename)

    for where, _, names in os.walk(folder, onerror=look):
        paths = [where, *(os.path.join(where, name) for name in names)]
        closed += [path for path in paths if not os.access(path, os.R_OK)]
    return os.fspath(closed[0]) if closed else ""


def _reason(error: BaseException) -> str:
    # TensorStore's messages are long; what the operating system said is a number in it.
    text = str(error)
    if found := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]


def _keep_quiet(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs, tracebacks of its threads among it.

    Every failure reaches our callers as an error and is explained once, there.
    """
    # asyncio reports, of all writes that a full disk ends, those nobody awaited.
    said = f"{record.pathname} {record.getMessage()}"
    from_orbax = f"{os.sep}orbax{os.sep}" in said or _UNFINISHED in said
    return not from_orbax or logger.isEnabledFor(logging.DEBUG)


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_keep_quiet)
