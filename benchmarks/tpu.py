"""The TPU compiler's figures for the steps, next to the best published ones.

  pip install 'vit_jax[plan]'
  python benchmarks/tpu.py [--rows=TEXT] [--json=FILE]

Compiles each program for four chips, which need not be present, and prints memory,
traffic and the two time estimates, with the bounds that this repository sets for
itself. vit_jax/plan/cost_model/estimate.py explains the limits of the estimates. Exits
with 1 if a bound is exceeded. A row takes from one to ten minutes on two cores.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from vit_jax.config import Config, default_config
from vit_jax.plan import Measurement, measure, topology
from vit_jax.train.programs import build, build_predict

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    """A program with its bounds for one chip: GiB, GB, ms, ms."""

    name: str
    topology: str
    values: dict[str, Any]
    bounds: dict[str, float] = dataclasses.field(default_factory=dict)
    program: Any = build


def _training(variant: str, image_size: int, images: int, **values: Any) -> dict:
    """Returns keys that differ from `_config`, for `images` per chip."""
    sizes = {"image_size": (image_size,), "batch_size": 4 * images}
    return {"model.variant": variant} | sizes | values


_B16, _FSDP = _training("B/16", 224, 128), {"mesh.data": 1, "mesh.fsdp": 4}
_H14 = _training("H/14", 224, 32) | _FSDP
_PLAIN = (
    Row(
        "B/16@224 b128",
        "v5e:2x2",
        _B16,
        {"GiB": 5.8, "GB": 38, "hyb": 105, "cyc": 145},
    ),
    Row("B/16@224 b128, XLA's attention", "v5e:2x2", _B16 | {"model.attention": "xla"}),
    Row("B/16@224 b128", "v4:2x2x1", _B16, {"hyb": 100, "cyc": 125}),
    Row(
        "B/16@224 b128 inference",
        "v5e:2x2",
        _B16 | {"eval_batch_size": 512},
        {"hyb": 38},
        build_predict,
    ),
    Row(
        "L/16@224 b64",
        "v5e:2x2",
        _training("L/16", 224, 64),
        {"GiB": 14, "hyb": 230},
    ),
    Row(
        "B/16@384 b32",
        "v5e:2x2",
        _training("B/16", 384, 32),
        {"GiB": 6.2, "hyb": 108},
    ),
    # 0.75 × the next row.
    Row("H/14@224 b32, FSDP", "v5e:2x2", _H14, {"hyb": 258}),
    Row(
        "H/14@224 b32, FSDP, XLA's attention",
        "v5e:2x2",
        _H14 | {"model.attention": "xla"},
    ),
)
_DROPPING = (
    Row(
        f"{row.name}, dropout 0.1",
        row.topology,
        row.values | {"model.dropout_rate": 0.1},
    )
    for row in _PLAIN
    if row.bounds and row.program is build
)
ROWS = (*_PLAIN, *_DROPPING)


def main() -> None:
    """Compiles the rows, prints the table, and reports the bounds that are exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only rows with this in their name")
    parser.add_argument("--json", help="file to which each row adds a line")
    asked = parser.parse_args()
    rows = [row for row in ROWS if asked.rows in f"{row.name}, {row.topology}"]
    table = Table("program", "chips", "GiB", "GB of traffic", "hyb ms", "cyc ms")
    beyond = []
    for row in rows:
        print(f"compiling {row.name} for {row.topology}", file=sys.stderr)
        measured = _measured(row)
        numbers = _numbers(measured)
        found = [f"{number:.4g}{_bound(row, unit)}" for unit, number in numbers.items()]
        table.add_row(row.name, row.topology, *found)
        beyond += [
            f"{row.name} for {row.topology}: {numbers[unit]:.4g} {unit} > {bound}"
            for unit, bound in row.bounds.items()
            if numbers[unit] > bound
        ]
        if asked.json:
            line = json.dumps({"name": row.name, "topology": row.topology} | numbers)
            with pathlib.Path(asked.json).open("a") as file:
                file.write(line + "\n")
    Console(width=100).print(table)
    sys.exit("\n".join(beyond) or None)


def _measured(row: Row) -> Measurement:
    chips = topology(row.topology)
    config = _config(row.values)
    return measure(*row.program(config, chips.mesh(config)), chips)


def _config(values: dict[str, Any]) -> Config:
    """Returns a config: AdamW, bfloat16 first moment and clipping, as for the peers."""
    config = default_config()
    config.dataset = "imagenet2012"
    config.total_steps, config.warmup_steps = 1000, 100
    config.optimizer, config.momentum_dtype = "adamw", "bfloat16"
    config.grad_clip_norm = 1.0
    config.update_from_flattened_dict(values)
    return config


def _numbers(measured: Measurement) -> dict[str, float]:
    if measured.refused:
        sys.exit(measured.refused)
    assert measured.estimate is not None
    return {
        "GiB": measured.bytes.peak / GIB,
        "GB": measured.estimate.traffic_bytes / 1e9,
        "hyb": measured.estimate.hyb_seconds * 1e3,
        "cyc": measured.estimate.cyc_seconds * 1e3,
    }


def _bound(row: Row, unit: str) -> str:
    return f" (≤ {row.bounds[unit]:g})" if unit in row.bounds else ""


if __name__ == "__main__":
    main()
