"""Stress test of runs that train a few parameters beside a frozen model.

  python benchmarks/stress_adapters.py [--adapters=NAMES] [--kills=2] [--steps=40]
      [--seed=0] [--lanes=1] [--folder=DIR]

For each row of `ROWS` this does what `benchmarks/stress.py` does, with a small run on
the digits that starts from the weights of another one: it is killed at random times and
started again, and must end with the metrics and the parameters, bit for bit, of a run
without interruptions. An adapter in the table of `vit_jax.models.adapters` that has no
row is an error.

Prints a line of JSON for each row. Exits with 0 if nothing was found, 1 otherwise. Each
start of a run takes some ten seconds.
"""

import pathlib
from typing import Any

from stress_objectives import Row, first_recipe, recipe, run_rows

FIRST = "config.seed = 1"
HEAD = """
config.pretrained = FIRST
config.ema_decay = 0.9
"""
# By the names of adapters, and of other ways to train few parameters.
ROWS = {
    "lora": Row(
        f"""{HEAD}
config.lora.rank = 2
config.lora.targets = "all"
""",
        first=FIRST,
    ),
    "prompts": Row(
        f"""{HEAD}
config.prompts.count = 3
""",
        first=FIRST,
    ),
    "lora and prompts": Row(
        f"""{HEAD}
config.lora.rank = 2
config.lora.dropout = 0.1
config.prompts.count = 3
config.prompts.deep = True
config.prompts.dropout = 0.1
config.momentum_dtype = "bfloat16"
config.bad_update = "skip"
config.accum_steps = 2
""",
        first=FIRST,
    ),
    "bitfit": Row(
        f"""{HEAD}
config.train_only = "bitfit"
config.weight_decay = 0.0
""",
        first=FIRST,
    ),
}


def without_row(adapters: Any) -> str:
    """Says which adapters have no row; "" = each has one."""
    found = [f"adapter {name!r} has no row" for name in sorted({*adapters} - {*ROWS})]
    return "; ".join(found) and f"{'; '.join(found)}: change ROWS in {__file__}"


def recipe_of(name: str, first: pathlib.Path | str) -> str:
    """Writes the recipe of a row.

    Args:
      name: the row.
      first: the work directory of the run whose weights it starts from.
    """
    return recipe("classification", ROWS[name], first)


def recipe_before(name: str) -> str:
    """Writes the recipe of the run whose weights a row starts from."""
    return first_recipe(ROWS[name])


def main() -> None:
    """Runs the command."""
    from vit_jax.models.adapters import ADAPTERS

    problem = without_row(ADAPTERS)
    run_rows("adapter", ROWS, "classification", __doc__ or "", problem)


if __name__ == "__main__":
    main()
