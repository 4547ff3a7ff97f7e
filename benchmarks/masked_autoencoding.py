"""The cost of a step of masked autoencoding, relative to a supervised step.

    pip install 'vit_jax[plan]'
    python benchmarks/masked_autoencoding.py [--where=tpu,cpu] [--topology=v5e:2x2]
        [--rounds=9] [--json]

tpu: B/16 at 224, 128 images per chip, compiled for chips that need not be present: both
time estimates (vit_jax/plan/cost_model/estimate.py) and the temporary memory. Three
programs, which take ten minutes on two cores.

cpu: S/16 at 224, batch 16, float32, measured on this machine with a decoder of width
256 and depth 4, and with the published one (512 and 8), which alone costs more than the
encoder of all patches. Each round runs every step once, in turn, and the ratios are
medians of the ratios within rounds, so that other work on the machine changes them
little.

Exits with 1 if a bound is not reached.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from steps import compiled_step, in_turn, median_ratio, timed

MAE = {
    "objective": "masked_autoencoding",
    "model.posemb": "sincos2d",
    "model.sincos_denominator": "mae",
    "model.gelu": "exact",
}
SMALL = {"decoder_width": 256, "decoder_depth": 4, "decoder_heads": 8}
# Name → keys, options of the objective, and upper bounds of ratios to the first row.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, float]]]
TPU = {
    "supervised": ({"model.gelu": "exact"}, {}, {}),
    "MAE": (MAE, {}, {"hyb ms": 0.65, "cyc ms": 0.65, "temporary GiB": 0.75}),
    "MAE, decoder_remat=full": (
        MAE,
        {"decoder_remat": "full"},
        {"temporary GiB": 0.55},
    ),
}
CPU = {
    "supervised": ({"model.gelu": "exact"}, {}, {}),
    "MAE, decoder 256 × 4": (MAE, SMALL, {"ms": 0.5}),
    "MAE, decoder 512 × 8": (MAE, {}, {}),
}


def made_config(
    variant: str, batch_size: int, values: dict[str, Any], options: dict[str, Any]
) -> Any:
    """Returns a config as in benchmarks/tpu.py: AdamW and clipping."""
    from ml_collections import ConfigDict

    from vit_jax.config import default_config

    config = default_config()
    config.dataset, config.total_steps = "imagenet2012", 1000
    config.model.variant, config.batch_size = variant, batch_size
    config.update_from_flattened_dict(values)
    config.objective_options = ConfigDict(options)
    return config


def on_tpu(name: str) -> dict[str, dict[str, float]]:
    """Compiles the rows of `TPU`; returns the compiler's figures."""
    from vit_jax.plan import measure, topology
    from vit_jax.train.programs import build

    chips, found = topology(name), {}
    for row, (values, options, _) in TPU.items():
        print(f"compiling {row} for {name}", file=sys.stderr, flush=True)
        config = made_config("B/16", 4 * 128, values, options)
        config.momentum_dtype = "bfloat16"
        measured = measure(*build(config, chips.mesh(config)), chips)
        if measured.refused or measured.estimate is None:
            sys.exit(measured.refused or f"no estimate of {row} for {name}")
        found[row] = {
            "hyb ms": measured.estimate.hyb_seconds * 1e3,
            "cyc ms": measured.estimate.cyc_seconds * 1e3,
            "GB of traffic": measured.estimate.traffic_bytes / 1e9,
            "temporary GiB": measured.bytes.temporaries / 2**30,
        }
    return found


def in_float32(values: dict[str, Any], options: dict[str, Any]) -> Any:
    """Returns the config of a row of `CPU`."""
    config = made_config("S/16", 16, values, options)
    config.compute_dtype = "float32"
    return config


def on_cpu(rounds: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Times the rows of `CPU`; returns medians, and medians of the ratios."""
    from vit_jax.host_memory import keep_freed_memory

    keep_freed_memory()  # as the commands do
    seconds = in_turn(
        {
            name: timed(compiled_step(in_float32(values, options)))
            for name, (values, options, _) in CPU.items()
        },
        rounds,
    )
    medians = {
        name: {"ms": statistics.median(some) * 1e3} for name, some in seconds.items()
    }
    first = seconds["supervised"]
    ratios = {name: median_ratio(some, first) for name, some in seconds.items()}
    return medians, ratios


def table(
    where: str,
    rows: dict[str, Any],
    found: dict[str, dict[str, float]],
    ratios: Callable[[str, str], float],
) -> list[str]:
    """Prints the figures with their ratios; describes bounds that are not reached."""
    missed = []
    for name, numbers in found.items():
        cells = []
        for unit, number in numbers.items():
            ratio, bound = ratios(name, unit), rows[name][2].get(unit)
            limit = "" if bound is None else f", at most {bound:g}"
            cells.append(f"{number:.3f} {unit} ({ratio:.3f} ×{limit})")
            if bound is not None and ratio > bound:
                missed.append(f"{where}, {name}: {unit} {ratio:.3f} × > {bound:g} ×")
        print(f"{where}  {name:24} {'  '.join(cells)}", flush=True)
    return missed


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--where", default="tpu,cpu")
    parser.add_argument("--topology", default="v5e:2x2", help="four chips")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="a line of JSON at the end")
    asked = parser.parse_args()
    missed, report = [], {}
    if "tpu" in asked.where:
        report["tpu"] = found = on_tpu(asked.topology)
        missed += table(
            *("tpu", TPU, found),
            lambda name, unit: found[name][unit] / found["supervised"][unit],
        )
    if "cpu" in asked.where:
        medians, ratios = on_cpu(asked.rounds)
        report["cpu"] = {name: medians[name] | {"ratio": ratios[name]} for name in CPU}
        missed += table("cpu", CPU, medians, lambda name, unit: ratios[name])
    if asked.json:
        print(json.dumps(report, allow_nan=False))
    for text in missed:
        print(f"MISSED: {text}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
