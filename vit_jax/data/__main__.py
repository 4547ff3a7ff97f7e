"""Says in seconds what a data set holds, and what is missing.

  python -m vit_jax.data DATASET [--data_dir=DIR] [--like=imagenet2012] [--json]

DATASET is what a config's `dataset` may be: "digits", a folder of images, a table, an
array file, or a name or folder of tensorflow-datasets. Its labels are counted, and one
image a split is decoded. With --like it is compared with a published set. The exit
status is 1 when anything is missing or wrong.
"""

import json
import sys

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("data_dir", "", "where tensorflow-datasets keeps its sets", FLAGS)
flags.DEFINE_string("like", "", "a preset to compare with", FLAGS)
flags.DEFINE_bool("json", False, "one JSON object on standard output", FLAGS)


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    if len(arguments) != 1:
        raise UserError(
            f"expected one data set, found {len(arguments)}: python -m vit_jax.data "
            "DATASET [--data_dir=DIR] [--like=imagenet2012] [--json]"
        )
    from vit_jax.data.check import check

    report = check(arguments[0], FLAGS.data_dir, FLAGS.like)
    if FLAGS.json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        _print(report)
    if report.problems:
        sys.exit(1)


def _print(report) -> None:
    several = ", any number an example" if report.multi_label else ""
    lines = [
        f"{report.location} ({report.kind})",
        f"{len(report.class_names):,} classes{several}",
    ]
    for split, count in report.num_examples.items():
        lines.append(f"{split}: {count:,} examples")
        if split in report.class_counts:
            for which, (name, number) in report.extremes(split).items():
                lines.append(f"  {which} class: {name!r}, {number:,}")
        if split in report.first:
            name, height, width = report.first[split]
            lines.append(f"  first: {name}, {height}×{width} pixels")
    if report.held_out:
        lines.append("a part of the training data is held out to evaluate on")
    lines += [f"missing or wrong: {problem}" for problem in report.problems]
    # A file's name may be no text.
    print("\n".join(lines).encode("utf-8", "backslashreplace").decode())


if __name__ == "__main__":
    command.run(main, FLAGS)
