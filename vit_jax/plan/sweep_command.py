"""The command's sweeps over patches, image sizes or variants."""

import functools
import json
from collections.abc import Callable
from typing import Any

from absl import flags

from vit_jax.errors import UserError
from vit_jax.plan import model_sweeps, report, sweep_files, sweep_flags
from vit_jax.plan.model_sweeps import AXES, Base
from vit_jax.plan.topologies import Topology
from vit_jax.train.setup import Setup
from vit_jax.words import pair, times

_VARIANT, _IMAGE_SIZE = "B/16", ["224"]

# From a command line and the name of a topology: the topology, the config of the
# recipe, and a function that sets up such runs.
Recipe = Callable[[list[str], str], tuple[Topology, Any, Callable[..., Setup]]]


def axis_of(own: flags.FlagValues) -> str:
    """Returns the axis of such a sweep; "" if none is asked for.

    Raises:
      UserError: flags that do not belong together.
    """
    axis = model_sweeps.axis_of(own.sweep)
    given = [name for name in sweep_flags.NAMES if own[name].value not in ("", 0, None)]
    if given and not axis:
        raise UserError(
            f"--{given[0]} belongs to --sweep={', --sweep='.join(AXES)}: pass one of "
            "these"
        )
    if axis and own.suggest:
        raise UserError(f"--suggest does not go with --sweep={axis}: run it on its own")
    return axis


def run(axis: str, own: flags.FlagValues, argv: list[str], recipe: Recipe) -> None:
    """Runs such a sweep, and prints its table or one JSON object.

    Args:
      axis: one of `AXES`.
      own: the command's flags.
      argv: the program's name, and the arguments that are not among these flags.
      recipe: reads the command line of a recipe.

    Raises:
      UserError: flags that do not belong together, a file that cannot be written, or a
        model that cannot be varied so.
    """
    csv = sweep_files.check_path(own.csv, "csv", [".csv"])
    plot = sweep_files.check_path(own.plot, "plot", sweep_files.PLOTS)
    if own.topology and own.measure:
        raise UserError(
            "--measure runs on this machine and --topology compiles for others: pass "
            "one of them"
        )
    compiled = None
    if any(argument.startswith("--config") for argument in argv):
        _check_recipe(own)
        topology, config, prepare = recipe(argv, own.topology)
        compiled = topology if own.topology else None
        setup = prepare(config)
        prepare = functools.partial(prepare, dataset=setup.dataset)
        base = model_sweeps.base_of_recipe(setup)
        found = model_sweeps.points_of_recipe(axis, base, argv, prepare)
    else:
        base = _variant(own, argv)
        found = model_sweeps.points_of_variant(axis, base)
    points, left_out = found
    rows = model_sweeps.run(axis, points, compiled, own.measure)
    title = _title(axis, base)
    if own.json:
        answer = {"axis": AXES[axis].key, "sweep": rows, "left_out": left_out}
        print(json.dumps(answer, allow_nan=False))
    else:
        report.show_model_sweep(title, rows, left_out, own.measure, own.topology)
    if csv:
        sweep_files.write_csv(rows, csv)
    if plot:
        sweep_files.write_plot(rows, title, plot)


def _check_recipe(own: flags.FlagValues) -> None:
    for name, key in (("variant", "model.variant"), ("image_size", "image_size")):
        if own[name].value is not None:
            raise UserError(
                f"--{name} is for a sweep without a recipe: pass --config.{key}"
            )


def _variant(own: flags.FlagValues, argv: list[str]) -> Base:
    """Returns the model that the flags name, without a recipe."""
    if len(argv) > 1:
        raise UserError(f"unexpected arguments {argv[1:]}. See --help.")
    if own.topology:
        raise UserError(
            f"--topology={own.topology} compiles the training step of a recipe: pass "
            "--config as well"
        )
    given = _IMAGE_SIZE if own.image_size is None else own.image_size
    try:
        size = pair(tuple(int(side) for side in given))
    except ValueError:
        raise UserError(
            f"--image_size={','.join(given)}: expected one side, or HEIGHT,WIDTH, in "
            "pixels"
        ) from None
    return model_sweeps.base_of_variant(own.variant or _VARIANT, size)


def _title(axis: str, base: Base) -> str:
    size, patch = times(base.image_size), times(base.patch_size)
    what = {
        "patch": f"{base.variant.rpartition('/')[0]} on {size} pixels",
        "size": base.variant or f"the model with patches of {patch}",
        "variant": f"patches of {patch} on {size} pixels",
    }
    return f"{what[axis]}, by {axis}"
