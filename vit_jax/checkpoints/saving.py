"""Saving and restoring the state of a run, step by step, with Orbax."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from vit_jax.checkpoints.buckets import (
    in_bucket,
    is_complete,
    is_folder,
    move,
    remove,
)
from vit_jax.checkpoints.compare import compare_trees
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.manifest import write_manifest
from vit_jax.checkpoints.parts import (
    EMA,
    METADATA,
    OBJECTIVE,
    OPTIMIZER,
    PARAMS,
    UNFINISHED,
    DamagedError,
    handlers,
    reason,
    sound,
)
from vit_jax.checkpoints.reading import choose, newest_sound, saved_steps
from vit_jax.checkpoints.retention import Retention
from vit_jax.checkpoints.workdir import CHECKPOINTS, locate
from vit_jax.errors import UserError

logger = logging.getLogger(__name__)

_RENAME = ocp.options.AtomicityMode.ATOMIC_RENAME
_COMMIT_FILE = ocp.options.AtomicityMode.COMMIT_FILE


class Restored(NamedTuple):
    """Returned by `Checkpoints.restore`: the parts that were asked for, by name."""

    items: dict[str, Any]
    description: Description


class Checkpoints:
    """The checkpoints of one run; a context manager, to be used by one run at a time.

    A checkpoint is written beside its final place, read once for the checksums of its
    files, and renamed when it is complete, so one that can be seen is whole, whatever
    happened to the process. Older ones are deleted only after that. All of this but the
    copy of the arrays happens beside the training.

    Leave it through `with` or `close()`: a save that is in flight when the interpreter
    exits can no longer finish, and Python waits for it forever.
    """

    def __init__(self, workdir: str | os.PathLike[str], keep: int, best: str = ""):
        """Opens or creates WORKDIR/checkpoints and removes what killed saves left.

        Args:
          workdir: the run's directory.
          keep: how many of the newest checkpoints stay.
          best: a metric; the checkpoint that is best by it stays as well.

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
            self._retention = Retention(keep, best)
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._retention,
                    atomicity_options=ocp.options.AtomicityOptions(
                        mode=_COMMIT_FILE if in_bucket(self._directory) else _RENAME
                    ),
                    async_options=ocp.options.AsyncOptions(
                        post_finalization_callback=self._write_manifest
                    ),
                ),
                handler_registry=handlers(PARAMS, EMA, OPTIMIZER, OBJECTIVE, METADATA),
            )
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self._directory} "
                f"({error.strerror or error}); make it writable or pass another "
                "--workdir."
            ) from error

    def latest_step(self) -> int | None:
        """The newest complete checkpoint; None before the first."""
        return max(saved_steps(self._directory), default=None)

    def best_step(self) -> int | None:
        """The checkpoint that is best by the metric; None without one."""
        return self._retention.best(saved_steps(self._directory))

    def is_best(self, step: int) -> bool:
        """Whether what was noted of a step is better than all there are."""
        there = {*saved_steps(self._directory), self._in_flight or step, step}
        return self._retention.best(there) == step

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """What an evaluation has measured: decides which checkpoint is the best."""
        self._retention.note(step, metrics)

    def save(
        self, step: int, items: Mapping[str, Any], description: Description
    ) -> None:
        """Starts saving; returns when the arrays are copied, so they may be donated.

        Waits for an earlier save first. A step that is already saved is left as it is:
        the state is a function of the step.

        Args:
          step: finished updates.
          items: trees of arrays by the name of their part: `PARAMS`, `OPTIMIZER` and,
            where there are such, `EMA` and `OBJECTIVE`.
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
        parts: dict[str, Any] = {
            name: ocp.args.PyTreeSave(tree) for name, tree in items.items()
        }
        parts[METADATA] = ocp.args.JsonSave(description.to_dict())
        self._in_flight = step
        with self._failures_explained(OSError):
            # Orbax would make it anew, wherever that then is, and nobody would know.
            if not is_folder(self._directory):
                raise NotADirectoryError(
                    errno.ENOTDIR, f"the folder {self._directory} has vanished"
                )
            self._manager.save(step, args=ocp.args.Composite(**parts), force=True)

    def restore_newest(self, abstract: Mapping[str, Any]) -> Restored | None:
        """Like `restore`, from the newest checkpoint that is sound; None without any.

        Damaged ones that are newer are moved away, to checkpoints/<step>.damaged, so
        that these steps can be saved again.

        Raises:
          UserError: all are damaged; or see `restore`.
        """
        damaged: list[int] = []

        def restore(step: int) -> Restored:
            try:
                return self.restore(step, abstract)
            except DamagedError:
                damaged.append(step)
                raise

        if self.latest_step() is None:
            return None
        found = newest_sound(self._directory.parent, restore)
        if damaged:
            self._set_aside(damaged)
        return found

    def restore(self, step: int, abstract: Mapping[str, Any]) -> Restored:
        """Reads a checkpoint onto the devices that the abstract arrays name.

        Args:
          step: one of the saved steps.
          abstract: the parts to read, as they were saved: trees of
            `jax.ShapeDtypeStruct` with shardings; optimiser states in optax's classes.

        Raises:
          DamagedError: it is not as it was written.
          UserError: no such step, or another model's or optimizer's tree.
        """
        self.wait()
        wanted = dict(abstract)
        for leaf in jax.tree.leaves(wanted):
            if getattr(leaf, "sharding", None) is None:
                raise ValueError(f"{leaf} has no sharding to restore onto")
        choose(self._directory.parent, step)
        folder = self._directory / str(step)
        self._check(folder, (*wanted, METADATA))
        with sound(folder):
            saved: Any = self._manager.metadata(step).item_metadata
            found = {name: saved[name].tree for name in wanted if saved[name]}
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
        items[METADATA] = ocp.args.JsonRestore()
        with sound(folder):
            state: Any = self._manager.restore(step, args=ocp.args.Composite(**items))
        description = Description.from_dict(state[METADATA])
        return Restored({name: state[name] for name in wanted}, description)

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

    def _write_manifest(self) -> None:
        """Orbax calls it when all files are written and the folder has its old name.

        In one process only, and when all others have written theirs.
        """
        step = str(self._in_flight)
        for folder in self._directory.iterdir():
            # Where nothing can be renamed, it has its final name from the start.
            if folder.name == step or folder.name.startswith(step + UNFINISHED):
                write_manifest(folder)

    def _check(self, folder: Path, parts: tuple[str, ...]) -> None:
        """Raises DamagedError in all processes if the first finds a difference."""
        difference = ""
        if jax.process_index() == 0:
            try:
                with sound(folder, *parts):
                    pass
            except DamagedError as error:
                difference = str(error)
        if jax.process_count() > 1:
            damaged = np.asarray(bool(difference))
            if multihost_utils.broadcast_one_to_all(damaged) and not difference:
                difference = f"the checkpoint {folder} is damaged."
        if difference:
            raise DamagedError(difference)

    def _set_aside(self, steps: Sequence[int]) -> None:
        moved = [
            (self._directory / str(step), self._directory / f"{step}.damaged")
            for step in steps
        ]
        if jax.process_index() == 0:
            for folder, aside in moved:
                if aside.exists():
                    remove(aside)
                move(folder, aside)
        if jax.process_count() > 1:
            # All of them are moved before any process looks at the directory again.
            multihost_utils.sync_global_devices(f"set aside {steps}")
        for _, aside in moved:
            logger.warning("it was moved to %s, which you may delete", aside)
        self._manager.reload()

    @contextlib.contextmanager
    def _failures_explained(self, kind: type[Exception]) -> Iterator[None]:
        try:
            yield
        except kind as error:
            step, self._in_flight = self._in_flight, None
            with contextlib.suppress(OSError):  # the folder may be gone
                self._remove_unfinished()  # gives a full disk its space back
                self._manager.reload()  # Orbax has already forgotten the older steps
            last = self.latest_step()
            raise UserError(
                f"checkpoint at step {step} was not saved ({reason(error)}); "
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
        if jax.process_index() != 0 or not self._directory.is_dir():
            return
        for folder in self._directory.iterdir():
            cut_off = folder.name.isdecimal() and not is_complete(folder)
            if UNFINISHED in folder.name or cut_off:
                logger.info("removing %s, a save that was cut off", folder)
                remove(folder)
