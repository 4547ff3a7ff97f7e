"""Reading descriptions and parameters of checkpoints outside of their run."""

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.checkpoints.buckets import is_complete
from vit_jax.checkpoints.description import MODEL, Description
from vit_jax.checkpoints.parts import (
    EMA,
    METADATA,
    OBJECTIVE,
    OPTIMIZER_AVERAGES,
    PARAMS,
    DamagedError,
    reader,
    sound,
)
from vit_jax.checkpoints.workdir import CHECKPOINTS, CONFIG_FILE, locate
from vit_jax.errors import UserError
from vit_jax.words import shortened

logger = logging.getLogger(__name__)

T = TypeVar("T")


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Returns whether there is a complete checkpoint to continue from."""
    return bool(saved_steps(locate(workdir) / CHECKPOINTS))


def newest_step(workdir: str | os.PathLike[str]) -> int | None:
    """Returns the step of the newest complete checkpoint; None before the first."""
    return max(saved_steps(locate(workdir) / CHECKPOINTS), default=None)


def has_checkpoints(workdir: str | os.PathLike[str]) -> bool:
    """Returns whether a numbered folder holds parameters or metadata."""
    directory = locate(workdir) / CHECKPOINTS
    return any(
        (directory / str(step) / part).is_dir()
        for step in saved_steps(directory)
        for part in (PARAMS, METADATA)
    )


def load_description(
    workdir: str | os.PathLike[str], step: int | None = None
) -> Description:
    """Reads the description of a checkpoint, and none of its arrays.

    Args:
      workdir: a run's directory; the run may still be writing to it.
      step: which checkpoint; by default the newest undamaged one.

    Raises:
      UserError: not a work directory, no such checkpoint, or a damaged one.
    """
    return _read(locate(workdir), step, _description)


def load_params(
    workdir: str | os.PathLike[str], step: int | None = None, *, ema: bool = False
) -> Any:
    """Reads the parameters as numpy arrays, without devices or optimizer state.

    Args:
      workdir: a run's directory; the run may still be writing to it.
      step: which checkpoint; by default the newest undamaged one.
      ema: read the averaged parameters if the checkpoint has them.

    Returns:
      A nested dict of numpy arrays.

    Raises:
      UserError: not a work directory, no such checkpoint, or a damaged one.
    """
    return _read(locate(workdir), step, lambda folder: _params(folder, ema))


def load_checkpoint(
    workdir: str | os.PathLike[str], step: int | None = None, *, ema: bool = False
) -> tuple[Description, Any, bool]:
    """Reads the description and the parameters of one checkpoint.

    The arguments are those of `load_params`. The parameters are the ones to use: some
    objectives keep subtrees of the model in their state, such as an averaged teacher,
    in place of the trained ones. The third value tells whether they are averaged.
    """

    def all_three(folder: Path) -> tuple[Description, Any, bool]:
        averaged = _part(folder, ema) != PARAMS
        params = _params(folder, averaged) | _model_of_objective(folder)
        return _description(folder), params, averaged

    return _read(locate(workdir), step, all_three)


def _description(folder: Path) -> Description:
    with sound(folder, METADATA), reader(METADATA) as orbax:
        items = ocp.args.Composite(**{METADATA: ocp.args.JsonRestore()})
        values = orbax.restore(folder, args=items)[METADATA]
    return Description.from_dict(values)


def _params(folder: Path, ema: bool) -> Any:
    return _arrays(folder, _part(folder, ema))


def _part(folder: Path, ema: bool) -> str:
    """Returns the name of the part to read: averages if wanted and there are any."""
    parts = (EMA, OPTIMIZER_AVERAGES) if ema else ()
    return next((part for part in parts if (folder / part).is_dir()), PARAMS)


def _model_of_objective(folder: Path) -> dict[str, Any]:
    """Reads the model's subtrees in the objective's state; {} if there are none."""
    if not (folder / OBJECTIVE).is_dir():
        return {}
    return _arrays(folder, OBJECTIVE, (MODEL,)).get(MODEL, {})


def _arrays(folder: Path, part: str, only: Collection[str] | None = None) -> Any:
    """Reads a part's arrays into host memory.

    Args:
      folder: the checkpoint.
      part: name of the part.
      only: top-level keys to read, where the part has them; by default all.
    """
    with sound(folder, part), reader(part) as orbax:
        tree = orbax.metadata(folder).item_metadata[part].tree
        if only is not None:
            if not isinstance(tree, dict):
                return {}
            tree = {name: tree[name] for name in only if name in tree}
        if not tree:
            return {}
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        restore = ocp.args.PyTreeRestore(restore_args=as_numpy)
        if only is not None:
            restore = ocp.args.PyTreeRestore(
                item=tree, restore_args=as_numpy, partial_restore=True
            )
        return orbax.restore(folder, args=ocp.args.Composite(**{part: restore}))[part]


def _read(workdir: Path, step: int | None, read: Callable[[Path], T]) -> T:
    """Calls `read` with the folder of a step, by default the newest undamaged one."""
    chosen = choose(workdir, step)
    if step is not None:
        return read(workdir / CHECKPOINTS / str(chosen))
    return newest_sound(workdir, lambda step: read(workdir / CHECKPOINTS / str(step)))


def newest_sound(workdir: Path, read: Callable[[int], T]) -> T:
    """Calls `read` with the newest undamaged step; warns about damaged ones.

    Raises:
      DamagedError: all checkpoints are damaged.
    """
    steps = saved_steps(workdir / CHECKPOINTS)[::-1]
    damages = []
    for step, older in zip(steps, [*steps[1:], None], strict=True):
        try:
            return read(step)
        except DamagedError as error:
            damages.append(str(error))
            if older is not None:
                logger.warning("%s Using the one before it, step %d", error, older)
    raise DamagedError(
        "\n".join(damages) + f"\nAll checkpoints in {workdir} are damaged. Copy one "
        "from a backup, or remove that folder to start again."
    )


def saved_steps(checkpoints: Path) -> list[int]:
    """Lists the steps of all complete checkpoints in ascending order."""
    # A save in flight has another name until it is complete.
    if not checkpoints.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in checkpoints.iterdir()
        if path.name.isdecimal() and is_complete(path)
    )


def choose(workdir: Path, step: int | None) -> int:
    """Returns the step to read, by default the newest.

    Raises:
      UserError: not a work directory, or no such checkpoint.
    """
    if not (workdir / CHECKPOINTS).is_dir():
        raise UserError(f"{workdir} is not a work directory: {_contents(workdir)}.")
    steps = saved_steps(workdir / CHECKPOINTS)
    if not steps:
        raise UserError(
            f"{workdir} holds no complete checkpoint; train first, or pass another "
            "directory."
        )
    if step is not None and step not in steps:
        raise UserError(
            f"{workdir} has no checkpoint at step {step}; there are checkpoints at "
            f"{', '.join(map(str, steps))}."
        )
    return steps[-1] if step is None else step


def _contents(path: Path) -> str:
    if not path.exists():
        return "it does not exist"
    if not path.is_dir():
        return "it is a file"
    names = sorted(p.name for p in path.iterdir())
    if CONFIG_FILE in names:
        return "a run was started in it, but has saved nothing yet"
    held = shortened(names, most=5) or "nothing"
    return f"it holds {held}, but no folder named {CHECKPOINTS}"
