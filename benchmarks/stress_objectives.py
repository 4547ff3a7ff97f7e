"""Stress test of every objective: kills its runs at random times, and compares bits.

  python benchmarks/stress_objectives.py [--objectives=NAMES] [--kills=2] [--steps=40]
      [--seed=0] [--lanes=1] [--folder=DIR]

For each objective in the table of `vit_jax.objectives.choosing` this does what
`benchmarks/stress.py` does, with a small run of that objective on the digits: it is
killed at random times and started again, and must end with the metrics and the
parameters, bit for bit, of a run without interruptions. An objective that has no row in
`ROWS` is an error.

Prints a line of JSON for each objective. Exits with 0 if nothing was found, 1
otherwise. Each start of a run takes some ten seconds.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from stress import RECIPE, WRONG, Run, Stress


class Row(NamedTuple):
    """The reduced run of an objective.

    Attributes:
      lines: statements that change `config` in the recipe of `stress.py`.
      first: the same for a run that is trained before, such as a teacher's; in `lines`,
        FIRST is its work directory. "" = there is none.
    """

    lines: str
    first: str = ""


ROWS = {
    # With several random parts: mixing, and weights from the numbers of images.
    "classification": Row("""
config.loss = "sigmoid_focal"
config.loss_options.class_weights = "balanced"
config.loss_options.logit_adjustment = 1.0
config.mixing.mixup_alpha = 0.5
config.ema_decay = 0.9
config.ema_decays = (0.5, 0.99)
"""),
    "distillation": Row(
        """
config.objective_options.teachers = FIRST
config.objective_options.kind = "soft"
config.mixing.mixup_alpha = 0.5
""",
        first="config.seed = 1",
    ),
    "linear_probe": Row(
        """
config.pretrained = FIRST
config.model.dropout_rate = 0.0
config.model.head_std = 0.01
""",
        first="config.seed = 1",
    ),
    "masked_autoencoding": Row("""
config.model.posemb = "sincos2d"
config.objective_options.decoder_width = 16
config.objective_options.decoder_depth = 1
config.objective_options.decoder_heads = 2
"""),
    "masked_patches": Row("""
config.objective_options.swap_from = "batch"
"""),
    "self_distillation": Row("""
config.model.stochastic_depth = 0.1
config.grad_clip_parameter_norm = 3.0
config.weight_decay_end = 0.4
config.objective_options.out_dim = 16
config.objective_options.hidden_dim = 16
config.objective_options.bottleneck_dim = 8
config.objective_options.freeze_last_layer = 0
config.objective_options.local_crops_number = 2
config.objective_options.local_crops_size = 4
"""),
}


def recipe(name: str, row: Row, first: pathlib.Path | str = "") -> str:
    """Writes the recipe of an objective's run.

    Args:
      name: the objective.
      row: its row.
      first: the work directory of the run before it.
    """
    return _recipe(f"config.objective = {name!r}\n{row.lines}", first)


def first_recipe(row: Row) -> str:
    """Writes the recipe of the run before that of an objective."""
    return _recipe(row.first)


def _recipe(lines: str, first: pathlib.Path | str = "") -> str:
    lines = lines.replace("FIRST", repr(str(first)))
    indented = "".join(f"    {line}\n" for line in lines.splitlines())
    head, end, _ = RECIPE.rpartition("    return config\n")
    unlocked = "    config.unlock()\n"  # for options of objectives and losses
    return f"{head}{unlocked}{indented}{end}"


def without_row(names: Any) -> str:
    """Says which objectives have no row, or which rows no objective; "" = none."""
    names, rows = set(names), set(ROWS)
    found = [
        *(f"objective {name!r} has no row" for name in sorted(names - rows)),
        *(f"row {name!r} has no objective" for name in sorted(rows - names)),
    ]
    return "; ".join(found) and f"{'; '.join(found)}: change ROWS in {__file__}"


def stressed(name: str, folder: pathlib.Path, row: Row, **asked: Any) -> dict[str, Any]:
    """Kills runs of an objective; returns the summary of `stress.py`.

    Args:
      name: the objective.
      folder: where the runs write.
      row: its run.
      **asked: arguments of `Stress`.
    """
    first = folder / "before" / "first"
    if row.first:
        before = Stress(folder / "before", 0, 1, 10, 0, recipe=first_recipe(row))
        run = Run(before, first)
        if any(run.end(3600.0)):
            run.complain("the run before it failed")
            sys.exit(1)
    found = Stress(folder, processes=1, recipe=recipe(name, row, first), **asked)
    return found.run()


def run_rows(
    kind: str, rows: Mapping[str, Row], objective: str, doc: str, problem: str
) -> None:
    """Runs the command of a table of rows.

    Args:
      kind: what a row is for, as it is called in flags and results.
      rows: the table.
      objective: that of all rows; "" = each row is named after its own.
      doc: the help.
      problem: why the table is not complete; "" = it is.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(f"--{kind}s", dest="names", default=",".join(rows))
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--folder", type=pathlib.Path)
    asked = vars(parser.parse_args())
    if problem:
        sys.exit(problem)
    names, folder = asked.pop("names").split(","), asked.pop("folder")
    wrong = False
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            place = (folder or pathlib.Path(temporary)) / name.replace(" ", "_")
            found = stressed(objective or name, place, row=rows[name], **asked)
            print(json.dumps({kind: name} | found), flush=True)
            wrong |= any(found[sign] for sign in WRONG)
    sys.exit(wrong)


def main() -> None:
    """Runs the command."""
    from vit_jax.objectives.choosing import OBJECTIVES

    run_rows("objective", ROWS, "", __doc__ or "", without_row(OBJECTIVES))


if __name__ == "__main__":
    main()
