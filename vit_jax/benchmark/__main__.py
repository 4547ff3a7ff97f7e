"""Measurements of training, inference or input speed on this machine.

  python -m vit_jax.benchmark --what=train|inference|input --config=configs/b16.py
      [--config.KEY=VALUE ...] [--batch_sizes=8,16,32] [--seconds=10] [--json]

`train` and `inference` time the compiled step on random weights and images, so neither
weights nor a data set is needed. `input` times the input pipeline of a training run, on
the run's own data. To use a single core: taskset -c 0 python -m vit_jax.benchmark ...
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError

WHAT = ("train", "inference", "input")


def main() -> None:
    """Runs the command; see the module's docstring."""
    command.guard(_main)


def _main() -> None:
    from vit_jax.config.recipes import load_recipe

    own = flags.FlagValues()
    flags.DEFINE_string(
        "what", "input", f"what to measure: {', '.join(WHAT)}", flag_values=own
    )
    flags.DEFINE_list(
        "batch_sizes", [], "global batch sizes to compare; empty: the recipe's", own
    )
    flags.DEFINE_float(
        "seconds",
        10.0,
        "duration of timing the input, or each batch size, in seconds",
        lower_bound=0.1,
        flag_values=own,
    )
    flags.DEFINE_bool("json", False, "one JSON object on standard output", own)
    rest = command.parse(sys.argv, own, __doc__ or "", known_only=True)
    if own.what not in WHAT:
        raise UserError(f"--what={own.what}: expected one of {', '.join(WHAT)}")
    sizes = _batch_sizes(own.batch_sizes)
    config, _ = load_recipe([sys.argv[0], *rest])
    measure, show = _measurement(own.what, config, sizes, own.seconds)
    report = measure()
    if own.json:
        print(json.dumps(report, allow_nan=False))
    else:
        show(report)


def _measurement(
    what: str, config: Any, sizes: list[int], seconds: float
) -> tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], None]]:
    """Returns the function that measures, and the one that prints the result."""
    if what == "input":
        from vit_jax.benchmark.input import measure_input, show

        if sizes:
            raise UserError(
                "--batch_sizes applies only to --what=train and --what=inference; for "
                "the input set --config.batch_size"
            )
        return lambda: measure_input(config, seconds), show
    from vit_jax.benchmark import compute
    from vit_jax.host_memory import keep_freed_memory

    keep_freed_memory()  # as in training
    return lambda: compute.measure_steps(config, what, sizes, seconds), compute.show


def _batch_sizes(texts: list[str]) -> list[int]:
    wrong = [text for text in texts if not text.isdecimal() or int(text) < 1]
    if wrong:
        raise UserError(
            f"--batch_sizes: {', '.join(map(repr, wrong))}; expected whole numbers of "
            "1 or more, as in 8,16,32"
        )
    return sorted({int(text) for text in texts})


if __name__ == "__main__":
    main()
