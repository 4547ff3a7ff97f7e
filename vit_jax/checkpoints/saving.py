"""Saving and restoring the state of a run with Orbax, one checkpoint per step."""

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
    OPTIMIZER_AVERAGES,
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
    """The requested parts of a checkpoint, by name, with its description."""

    items: dict[str, Any]
    description: Description


class Checkpoints:
    """The checkpoints of one run; a context manager, for one run at a time.

    A checkpoint is written under a temporary name, read back once to compute the
    checksums of its files, and renamed when it is complete. So a visible checkpoint is
    whole, no matter when the process was killed. Older ones are deleted only after the
    rename. Training continues meanwhile; it waits only until the arrays are copied.

    Leave it through `with` or `close()`: a save that is still running when the
    interpreter exits can never finish, and Python would wait for it forever.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        keep: int,
        best: str = "",
        better: float = 1.0,
    ):
        """Opens or creates WORKDIR/checkpoints and removes the remains of killed saves.

        Args:
          workdir: the run's directory.
          keep: number of newest checkpoints to keep.
          best: name of a metric; the best checkpoint by it is kept as well.
          better: 1 if greater values of the metric are better, −1 if smaller ones are.

        Raises:
          UserError: the directory cannot be written to.
        """
        if keep < 1:
            raise ValueError(f"keep={keep}, expected at least 1 checkpoint to keep.")
        self._directory = locate(workdir) / CHECKPOINTS
        self._in_flight: int | None = None
        self._closed = False
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            self._retention = Retention(keep, best, better)
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
                handler_registry=handlers(
                    *(PARAMS, EMA, OPTIMIZER_AVERAGES, OPTIMIZER, OBJECTIVE, METADATA)
                ),
            )
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self._directory} "
                f"({error.strerror or error}); make it writable or pass another "
                "--workdir."
            ) from error

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint; None before the first."""
        return max(saved_steps(self._directory), default=None)

    def best_step(self) -> int | None:
        """Returns the step of the best checkpoint by the metric; None without one."""
        return self._retention.best(saved_steps(self._directory))

    def folder(self, step: int) -> str:
        """Returns the path of a step's checkpoint, which every command accepts."""
        return str(self._directory / str(step))

    def is_best(self, step: int) -> bool:
        """Returns whether a step's noted metric beats those of all checkpoints."""
        there = {*saved_steps(self._directory), self._in_flight or step, step}
        return self._retention.best(there) == step

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of a step, which decide the best checkpoint."""
        self._retention.note(step, metrics)

    def save(
        self, step: int, items: Mapping[str, Any], description: Description
    ) -> None:
        """Starts a save; returns once the arrays are copied and so may be donated.

        Waits for an earlier save first. Does nothing if the step is already saved: the
        state is a function of the step.

        Args:
          step: completed updates.
          items: part name → tree of arrays: `PARAMS`, `OPTIMIZER` and, if the run has
            them, `EMA`, `OPTIMIZER_AVERAGES` and `OBJECTIVE`.
          description: everything else that is needed to use the checkpoint.

        Raises:
          UserError: this or an earlier save failed; names the step, the reason and the
            last good checkpoint, which still exists.
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
            # Orbax would silently create it again, perhaps on another file system.
            if not is_folder(self._directory):
                raise NotADirectoryError(
                    errno.ENOTDIR, f"the folder {self._directory} has vanished"
                )
            self._manager.save(step, args=ocp.args.Composite(**parts), force=True)

    def restore_newest(self, abstract: Mapping[str, Any]) -> Restored | None:
        """Restores the newest undamaged checkpoint; returns None if there are none.

        Moves newer, damaged checkpoints to checkpoints/<step>.damaged, so that these
        steps can be saved again.

        Raises:
          UserError: all checkpoints are damaged, or `restore` raised it.
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
        """Reads a checkpoint onto the devices given by the abstract arrays' shardings.

        Args:
          step: one of the saved steps.
          abstract: part name → the tree that was saved, of `jax.ShapeDtypeStruct` with
            shardings; optimizer states in optax's classes.

        Raises:
          DamagedError: the checkpoint changed after it was written.
          UserError: the step was not saved, or the saved trees belong to another model
            or optimizer.
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
                f"the checkpoint {folder} does not fit this model and optimizer:\n"
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
        """Waits until the save in flight is complete.

        Raises:
          UserError: the save failed, with the message described in `save`.
        """
        with self._failures_explained(Exception):
            self._manager.wait_until_finished()
        self._in_flight = None

    def check(self) -> None:
        """Raises the error of a save that has already failed; never waits."""
        if self._in_flight is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for the save in flight and stops Orbax's threads; may be called twice.

        Raises:
          UserError: the save failed, with the message described in `save`.
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
            # The exception that ended the run matters more and must not be hidden.
            logger.error("%s", error)

    def _write_manifest(self) -> None:
        """Writes the manifest of the save in flight.

        Orbax calls this before the rename, in one process only, after all processes
        have written their files.
        """
        step = str(self._in_flight)
        for folder in self._directory.iterdir():
            # In a bucket, which cannot rename, it has its final name from the start.
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
            # All moves must be done before any process looks at the directory again.
            multihost_utils.sync_global_devices(f"set aside {steps}")
        for _, aside in moved:
            logger.warning(
                "the damaged checkpoint was moved to %s, which you may delete", aside
            )
        self._manager.reload()

    @contextlib.contextmanager
    def _failures_explained(self, kind: type[Exception]) -> Iterator[None]:
        try:
            yield
        except kind as error:
            step, self._in_flight = self._in_flight, None
            with contextlib.suppress(OSError):  # the folder may be gone
                self._remove_unfinished()  # frees space, for the disk may be full
                self._manager.reload()  # Orbax has already dropped the older steps
            last = self.latest_step()
            raise UserError(
                f"checkpoint at step {step} was not saved ({reason(error)}); "
                + (
                    "there is no earlier one."
                    if last is None
                    else f"the last good one is step {last} at "
                    f"{self._directory / str(last)}."
                )
                + " Fix that and run the same command again to continue from there."
            ) from error

    def _remove_unfinished(self) -> None:
        # Called before this run's first save and after a failed one: none is in use.
        if jax.process_index() != 0 or not self._directory.is_dir():
            return
        for folder in self._directory.iterdir():
            cut_off = folder.name.isdecimal() and not is_complete(folder)
            if UNFINISHED in folder.name or cut_off:
                logger.info("removing %s, left by an interrupted save", folder)
                remove(folder)
