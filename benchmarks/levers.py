"""Gain and cost of each way to save memory, model by model.

  pip install 'vit_jax[plan]'
  python benchmarks/levers.py [--models=B/16,G/14] [--json=FILE] [--show]

Prints the tables of docs/memory.md: the size of parameters and optimiser state on a
chip, from their shapes; and memory and time of the training step compiled for four TPU
chips (which need not be present), unchanged and with one setting changed at a time.
Models are extrapolated along the line through models of 2 and 4 blocks, except those
that are scanned (vit_jax/plan/scaling.py). A program takes one to three minutes on one
core; programs that are already in FILE are not compiled again, and --show prints only
those.
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from vit_jax import sharding
from vit_jax.config import default_config
from vit_jax.plan import topology
from vit_jax.plan.scaling import predict
from vit_jax.train.setup import Setup, set_up

GIB = 2**30
TOPOLOGY = "v5e:2x2"
IMAGES = {"B/16": 128, "L/16": 64, "H/14": 32, "g/14": 32, "G/14": 32}  # per chip

_FSDP = {"mesh.data": 1, "mesh.fsdp": -1}
_SCAN = {"model.scan": True, "model.remat": "full"}
_MOMENTS, _OFFLOADED = {"momentum_dtype": "bfloat16"}, {"offload_optimizer": True}
_ADAFACTOR = {"optimizer": "adafactor", "momentum_dtype": "bfloat16"}
# Changes of the state between steps only; nothing is compiled for these.
STATE: tuple[dict[str, Any], ...] = (
    {},
    _MOMENTS,
    _ADAFACTOR,
    _OFFLOADED,
    _FSDP,
    _FSDP | _ADAFACTOR,
)
COMPILED: tuple[dict[str, Any], ...] = (
    {},
    {"model.remat": "full"},
    _FSDP,
    _SCAN,
    {"accum_steps": 4},
    _MOMENTS,
    _ADAFACTOR,
    _OFFLOADED,
    {"model.remat": "dots"},
    {"model.remat": "attention"},
    {"model.remat": "offload"},
    _FSDP | _SCAN | _ADAFACTOR | {"accum_steps": 4},
)


def main() -> None:
    """Compiles the programs that are not known yet and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(IMAGES), help="B/16,L/16,…")
    parser.add_argument("--json", help="file of one line per program, extended")
    parser.add_argument("--show", action="store_true", help="compile nothing")
    asked = parser.parse_args()
    models, file = asked.models.split(","), pathlib.Path(asked.json or "/dev/null")
    lines = file.read_text().splitlines() if file.exists() else []
    rows = {(row["model"], row["set"]): row for row in map(json.loads, lines)}
    for lever, model in itertools.product(COMPILED, models):
        if asked.show or (model, _name(lever)) in rows:
            continue
        row = rows[model, _name(lever)] = _row(model, lever)
        with file.open("a") as opened:
            opened.write(json.dumps(row) + "\n")

    def table(
        title: str, levers: Any, cell: Callable[[str, dict[str, Any]], str]
    ) -> None:
        print(f"\n{title}\n")
        _print_row(["", *(f"{model} b{IMAGES[model]}" for model in models)])
        _print_row("---" for _ in ["", *models])
        for lever in levers:
            name = f"`{_name(lever)}`" if lever else "unchanged"
            _print_row([name, *(cell(model, lever) for model in models)])

    def state(model: str, lever: dict[str, Any]) -> str:
        arrays = _setup(model, lever).abstract_state()
        return f"{sharding.bytes_per_device(arrays) / GIB:.2f}"

    def memory(model: str, lever: dict[str, Any]) -> str:
        row, base = (rows.get((model, _name(x))) for x in (lever, {}))
        if not row or not base:
            return ""
        text = f"{row['peak'] / GIB:.2f}" + " (!)" * (not row["fits"])
        return text + f" {row['peak'] / base['peak'] - 1:+.0%}" * bool(lever)

    def time(model: str, lever: dict[str, Any]) -> str:
        row, base = (rows.get((model, _name(x))) for x in (lever, {}))
        if not (row and base and row["seconds"] and base["seconds"]):
            return ""
        both = zip(row["seconds"], base["seconds"], strict=True)
        return " / ".join(f"{new / old - 1:+.0%}" for new, old in both)

    table("Parameters and optimiser, GiB on a chip", STATE, state)
    table("At peak, GiB; (!) = more than there is", COMPILED, memory)
    table("Time of a step by hyb / cyc", COMPILED, time)


def _row(model: str, lever: dict[str, Any]) -> dict[str, Any]:
    setup = _setup(model, lever)
    print(f"compiling {model} {_name(lever)}", file=sys.stderr, flush=True)
    found = predict(setup, topology(TOPOLOGY), _name(lever))
    return {
        "model": model,
        "set": _name(lever),
        "peak": found.peak_bytes,
        "fits": found.fits,
        "seconds": found.seconds,
        "extrapolated": found.extrapolated,
    }


def _setup(model: str, lever: dict[str, Any]) -> Setup:
    """Sets up AdamW, data parallel; in bfloat16, as always on TPUs."""
    config = default_config()
    config.dataset = "imagenet2012"
    config.total_steps, config.warmup_steps = 1000, 100
    config.batch_size = 4 * IMAGES[model]
    config.grad_clip_norm = 1.0
    config.model.variant = model
    config.update_from_flattened_dict(lever)
    return set_up(config, devices=topology(TOPOLOGY).devices)


def _name(lever: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in lever.items())


def _print_row(cells: Iterable[str]) -> None:
    print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
