"""Lists published weights that can be loaded by name.

  python -m vit_jax.models [TEXT…] [--family=augreg] [--max_params=30M]
      [--resolution=384] [--task=i1k] [--json]

Every TEXT must be part of a name, variant or family, ignoring case; "hybrid" and
"recommended" also work. A star marks weights that their authors recommend. Top-1
accuracy is on ImageNet-1k, as reported under the protocol beside it. Any AugReg file,
even if it is not listed, can be loaded by its name, and any model on the Hugging Face
hub as hf:OWNER/NAME.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax import command
from vit_jax.errors import Problems, UserError

if TYPE_CHECKING:
    from vit_jax.weights.published.families import Published

FLAGS = flags.FlagValues()
flags.DEFINE_string("family", None, "such as augreg, timm or deit", FLAGS)
flags.DEFINE_string(
    "max_params", None, "upper limit, such as 30M or 1.1B", flag_values=FLAGS
)
flags.DEFINE_integer(
    "resolution", None, "height and width in pixels", flag_values=FLAGS
)
flags.DEFINE_string(
    "task", None, "classes of the head: i1k, i21k, or none", flag_values=FLAGS
)
flags.DEFINE_bool("json", False, "one JSON object on standard output", FLAGS)

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    rows = select(arguments)
    if FLAGS.json:
        from vit_jax.weights.published.families import PROTOCOLS

        report = {"models": list(map(_plain, rows)), "protocols": PROTOCOLS}
        print(json.dumps(report, allow_nan=False))
    elif rows:
        _print(rows)
    else:
        raise UserError("no published weights match; drop one of the conditions")


def select(texts: Sequence[str]) -> "list[Published]":
    """Selects the rows that match the flags and every text, in the table's order.

    Raises:
      UserError: lists every flag with an invalid value.
    """
    from vit_jax.weights.published.families import FAMILIES
    from vit_jax.weights.published.zoo import MODELS

    tasks = {row.classes or "none" for row in MODELS.values()}
    problems = [
        f"--{name}={value}: choose from {', '.join(choices)}"
        for name, value, choices in (
            ("family", FLAGS.family, list(FAMILIES)),
            ("task", FLAGS.task, sorted(tasks)),
        )
        if value is not None and value not in choices
    ]
    most = FLAGS.max_params and re.fullmatch(
        r"(\d+(?:\.\d+)?)([KMBG]?)", FLAGS.max_params.upper()
    )
    if FLAGS.max_params is not None and not most:
        problems.append(
            f"--max_params={FLAGS.max_params}: expected a number such as 30M or 1.1B"
        )
    if problems:
        raise Problems(*problems)
    bound = float(most[1]) * _UNITS[most[2]] if most else None

    def fits(row: "Published") -> bool:
        kinds = "recommended" * row.recommended + " hybrid" * ("+" in row.variant)
        title = FAMILIES[row.family].title
        text = f"{row.name} {row.variant} {row.family} {title} {kinds}"
        return (
            all(part.lower() in text.lower() for part in texts)
            and FLAGS.family in (None, row.family)
            and FLAGS.task in (None, row.classes or "none")
            and FLAGS.resolution in (None, row.resolution)
            and (bound is None or (row.params or 0) <= bound)
        )

    return [row for row in MODELS.values() if fits(row)]


def _plain(row: "Published") -> dict[str, Any]:
    """Converts a row to JSON values."""
    return {
        "name": row.name,
        "family": row.family,
        "variant": row.variant,
        "params": row.params,
        "resolution": row.resolution,
        "pretraining": row.pretraining,
        "task": row.classes or "none",
        "top1": row.accuracy and row.accuracy.top1,
        "protocol": row.accuracy and row.accuracy.protocol,
        "recommended": row.recommended,
        "note": row.note,
        # Only where it is not a free one.
        **({"licence": row.licence} if row.licence else {}),
        "mirrors": [mirror._asdict() for mirror in row.mirrors],
    }


def _print(rows: "Sequence[Published]") -> None:
    from rich.console import Console
    from rich.table import Table

    from vit_jax.weights.published.families import FAMILIES, PROTOCOLS

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("name", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("px", justify="right", no_wrap=True)
    table.add_column("pretrained", no_wrap=True)
    table.add_column("head", no_wrap=True)
    table.add_column("top-1", no_wrap=True)
    for row in rows:
        accuracy = row.accuracy
        table.add_row(
            "★" if row.recommended else "",
            row.name,
            f"{row.params / 1e6:,.1f}M" if row.params else "",
            str(row.resolution or ""),
            row.pretraining,
            row.classes or "none",
            f"{accuracy.top1:.2f} ({accuracy.protocol})" if accuracy else "",
        )
    # Wide enough that in a pipe or a file every row takes one line.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
    for protocol in sorted({row.accuracy.protocol for row in rows if row.accuracy}):
        console.print(f"({protocol}) {PROTOCOLS[protocol]}", style="dim")
    for family in sorted({row.family for row in rows if row.licence}):
        known = FAMILIES[family]
        console.print(f"{known.title}: licence {known.licence}", style="dim")


if __name__ == "__main__":
    command.run(main, FLAGS)
