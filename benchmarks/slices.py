"""Memory of large models per chip of a TPU slice, and the communication.

  pip install 'vit_jax[plan]'
  python benchmarks/slices.py [--rows=TEXT] [--json=FILE]

Compiles the training step of H/14 and G/14, with parameters and optimiser state spread
over all chips, for slices of 16, 64 and 256 chips, which need not be present, and
prints the table of docs/parallelism.md. Exits with 1 if a chip's share of parameters or
optimiser state is not within 5 % of an equal share. A row takes one to three minutes on
two cores.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax

from vit_jax.config import Config, default_config
from vit_jax.plan import Plan, make_plan, topology
from vit_jax.train.setup import set_up

MIB = 2**20
MOST = 1.05  # times an equal share

# Model, slice, fsdp × tensor. G/14's width is 13 · 128.
ROWS = (
    ("H/14", "v5e:4x4", (16, 1)),
    ("H/14", "v5e:8x8", (64, 1)),
    ("H/14", "v5e:16x16", (256, 1)),
    ("G/14", "v5e:4x4", (16, 1)),
    ("G/14", "v5e:8x8", (64, 1)),
    ("G/14", "v5e:16x16", (128, 2)),
)
COLUMNS = (
    *("model", "chips", "fsdp × tensor"),
    *("parameters (× equal share)", "optimiser (× equal share)"),
    *("arguments", "temporaries", "at peak", "collectives", "compiled in s"),
)


def main() -> None:
    """Compiles the rows, prints the table, and reports the bounds that are exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only rows with this in their text")
    parser.add_argument("--json", help="file to which each row adds a line")
    asked = parser.parse_args()
    _print_row(COLUMNS)
    _print_row("---" for _ in COLUMNS)
    beyond = []
    for model, chips, (fsdp, tensor) in ROWS:
        name = f"{model} on {chips}, fsdp {fsdp} × tensor {tensor}"
        if asked.rows not in name:
            continue
        found = _numbers(_plan(model, chips, fsdp, tensor))
        where = (model, chips, f"{fsdp} × {tensor}")
        _print_row((*where, *_cells(found)))
        beyond += [
            f"{name}: {found[part]:.3f} × an equal share of {part.partition('_')[0]}"
            for part in ("parameters_ratio", "optimizer_ratio")
            if found[part] > MOST
        ]
        if asked.json:
            row = {"model": model, "topology": chips, "fsdp": fsdp, "tensor": tensor}
            with pathlib.Path(asked.json).open("a") as file:
                file.write(json.dumps(row | found) + "\n")
    sys.exit("\n".join(beyond) or None)


def _plan(model: str, chips: str, fsdp: int, tensor: int) -> Plan:
    print(f"compiling {model} for {chips}", file=sys.stderr)
    there = topology(chips)
    config = _config(model, len(there.devices))
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, fsdp, tensor
    return make_plan(set_up(config, devices=there.devices), there)


def _config(model: str, chips: int) -> Config:
    """Returns a config: AdamW, 16 images per chip, blocks scanned and recomputed."""
    config = default_config()
    config.dataset = "imagenet21k"
    config.total_steps, config.warmup_steps = 1000, 100
    config.batch_size = 16 * chips
    config.grad_clip_norm = 1.0
    config.model.variant = model
    config.model.scan, config.model.remat = True, "full"
    return config


def _numbers(plan: Plan) -> dict[str, Any]:
    """Returns bytes per chip, and their ratio to an equal share of the whole."""
    state, chips = plan.setup.abstract_state(), plan.setup.mesh.size
    whole = {
        "parameters": _bytes(state.params),
        "optimizer": _bytes(state._replace(params=())),
    }
    return {
        **plan.bytes,
        **{f"{p}_ratio": plan.bytes[p] * chips / whole[p] for p in whole},
        **dataclasses.asdict(plan.measurement.bytes),
        "collectives": plan.to_json()["collectives"],
        "compile_seconds": plan.measurement.compile_seconds,
        "refused": plan.measurement.refused,
    }


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _cells(found: dict[str, Any]) -> list[str]:
    sent = found["collectives"] or {}
    return [
        *(
            f"{found[part] / MIB:.1f} ({found[f'{part}_ratio']:.3f})"
            for part in ("parameters", "optimizer")
        ),
        *(f"{found[n] / MIB:,.0f}" for n in ("arguments", "temporaries", "peak")),
        ", ".join(
            f"{n['count']} {k} of {n['bytes'] / MIB:,.0f}" for k, n in sent.items()
        ),
        f"{found['compile_seconds']:.0f}",
    ]


def _print_row(cells: Any) -> None:
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
