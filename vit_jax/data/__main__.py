"""A check of a data set in seconds: its contents, and anything missing or wrong.

  python -m vit_jax.data DATASET [--data_dir=DIR] [--data=NAME=VALUE …]
      [--like=imagenet2012] [--json]

DATASET is anything that a config's `dataset` may be: "digits", a folder of images, a
table, an array file, or the name or folder of a tensorflow-datasets set. Its labels are
counted and one image per split is decoded. --like compares it with a published data
set. The exit status is 1 if anything is missing or wrong.
"""

import json
import sys

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError
from vit_jax.words import first_and_last, times

FLAGS = flags.FlagValues()
flags.DEFINE_string("data_dir", "", "where tensorflow-datasets stores data sets", FLAGS)
flags.DEFINE_multi_string(
    "data", [], "how the files are read, as in config.data: NAME=VALUE", FLAGS
)
flags.DEFINE_string("like", "", "preset to compare the data set with", FLAGS)
flags.DEFINE_bool("json", False, "one JSON object on standard output", FLAGS)


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    if len(arguments) != 1:
        raise UserError(
            f"found {len(arguments)} data sets, expected one: python -m vit_jax.data "
            "DATASET [--data_dir=DIR] [--like=imagenet2012] [--json]"
        )
    from vit_jax.data.check import check
    from vit_jax.data.sources.options import DEFAULT_OPTIONS

    options = DEFAULT_OPTIONS.with_flags(FLAGS.data)
    report = check(arguments[0], FLAGS.data_dir, FLAGS.like, options)
    if FLAGS.json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        _print(report)
    if report.problems:
        sys.exit(1)


def _print(report) -> None:
    from vit_jax.data.sources.image_files import in_words

    several = ", any number per example" if report.multi_label else ""
    lines = [
        f"{report.location} ({report.kind})",
        f"{len(report.class_names):,} classes{several}: "
        f"{first_and_last(report.class_names)}"
        if report.class_names
        else "no labels",
    ]
    for split, count in report.num_examples.items():
        lines.append(f"{split}: {count:,} examples")
        if split in report.class_counts:
            for which, (name, number) in report.extremes(split).items():
                lines.append(f"  {which} class: {name!r}, {number:,}")
        if split in report.first:
            name, *size = report.first[split]
            lines.append(f"  first: {name}, {times(size)} pixels")
    uses = [f"{split} is for {use}" for split, use in report.used.items()]
    lines.append("; ".join(uses))
    if report.left_out:
        lines.append(f"left out: {in_words(report.left_out)}")
    lines += report.remarks
    lines += [f"missing or wrong: {problem}" for problem in report.problems]
    # A file name need not be valid UTF-8.
    print("\n".join(lines).encode("utf-8", "backslashreplace").decode())


if __name__ == "__main__":
    command.run(main, FLAGS)
