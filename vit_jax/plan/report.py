"""Tables of a plan, for people, on standard output."""

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from vit_jax import sharding
from vit_jax.config import as_flags
from vit_jax.plan.plans import Plan
from vit_jax.words import byte_size, milliseconds, si, times

_ESTIMATE = (
    "hyb and cyc are an optimistic and a conservative estimate. They rank programs on "
    "one chip and do not predict throughput: they leave out stalls and traffic between "
    "devices. A difference below 5 %, or one that they disagree on, means nothing."
)
_NO_ESTIMATE = "Times are estimated for TPUs only, not for this platform."
_SWEPT = (
    "FLOPs are those of a forward pass, per image.",
    "scores: float32 attention weights of an image in a block; kernels may need less.",
)
_EXTRAPOLATED = "≈ extrapolated linearly from models of 2 and 4 blocks, not compiled."


def show_plan(plan: Plan) -> None:
    """Prints the plan of the recipe itself."""
    setup, measured, topology = plan.setup, plan.measurement, plan.topology
    architecture, config = setup.heaviest, setup.config
    mesh = " × ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    named = plan.bytes
    parts = ("parameters", "gradients", "optimizer", "batch", "activations")
    rows = {
        "devices": f"{topology.name}, mesh {mesh}",
        "images": f"{times(architecture.image_size)} in patches of "
        f"{times(architecture.patch_size)}: "
        f"{architecture.num_tokens:,} tokens"
        + ", the most of all patch sizes"
        * (setup.objective.patch_sizes is not None),
        "parameters": f"{plan.params:,}"
        + f", of which {plan.trained_params:,} are trained" * setup.groups.freezes,
        "FLOPs per image": f"{si(plan.flops.total)} forward, "
        f"{si(plan.training_flops)} in training; "
        f"{plan.flops.attention / plan.flops.total:.1%} of them in attention",
        "batch": f"{config.batch_size:,}, "
        f"{config.batch_size // sharding.batch_parts(setup.mesh):,} per device"
        + f" in {config.accum_steps} parts"
        * (config.accum_steps > 1),
        "bytes per device": ", ".join(
            f"{name} {byte_size(named[name])}" for name in parts
        ),
        "at peak": f"{byte_size(named['peak'])} of {byte_size(topology.usable_bytes)}: "
        + ("fits" if measured.fits else "does not fit")
        + f" (compiled in {measured.compile_seconds:.0f} s)",
        "step": _step(plan),
        "collectives": _collectives(plan),
        "run": f"{config.total_steps:,} steps = {plan.images:,} images = "
        f"{plan.epochs:,.2f} epochs ({setup.info.name} of "
        f"{setup.info.num_examples[setup.info.train_split]:,})",
    }
    table = _table()
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    _console().print(table)
    if measured.refused:
        _note(f"The compiler: {measured.refused}")
    _note(_ESTIMATE if measured.estimate else "" if measured.refused else _NO_ESTIMATE)


def show_suggestions(suggestions: dict[str, Any]) -> None:
    """Prints the result of `suggest`."""
    largest = suggestions["largest_batch"]
    table = _table("change", "at peak", "fits", "step, hyb", "step, cyc")
    for row in suggestions["changes"]:
        if row["problem"]:
            table.add_row(as_flags(row["set"]), "", "no")
            continue
        time = row["time"]
        table.add_row(
            as_flags(row["set"]),
            _about(row) + byte_size(row["peak"]),
            _yes(row["fits"]),
            *([f"{time[name] - 1:+.0%}" for name in ("hyb", "cyc")] if time else "--"),
        )
    console = _console()
    console.print(
        f"\nLargest batch of the unchanged recipe: {largest['batch_size']:,}"
        + (f", {byte_size(largest['peak'])} at peak" if largest["batch_size"] else "")
    )
    console.print(table)
    _notes(suggestions["changes"], lambda row: as_flags(row["set"]))


def show_sweep(rows: list[dict[str, Any]]) -> None:
    """Prints the result of `sweep.run`."""
    table = _table(
        *rows[0]["set"],
        *("tokens", "FLOPs per image", "attention", "at peak", "fits"),
        *("hyb ms", "cyc ms", "hyb ms per image"),
    )
    for row in rows:
        if row["problem"]:
            table.add_row(*row["set"].values(), *[""] * 4, "no")
            continue
        table.add_row(
            *row["set"].values(),
            f"{row['tokens']:,}",
            si(row["train_flops_per_image"]),
            f"{row['attention_share']:.1%}",
            _about(row) + byte_size(row["peak"]),
            _yes(row["fits"]),
            milliseconds(row["hyb_seconds"]),
            milliseconds(row["cyc_seconds"]),
            milliseconds(row["hyb_seconds_per_image"]),
        )
    console = _console()
    console.print()
    console.print(table)
    _notes(rows, lambda row: " ".join(f"{k}={v}" for k, v in row["set"].items()))


def show_model_sweep(
    title: str,
    rows: list[dict[str, Any]],
    left_out: dict[str, str],
    measured: int,
    topology: str,
) -> None:
    """Prints the result of `model_sweeps.run`.

    Args:
      title: text above the table.
      rows: a row for each value.
      left_out: value → why it has no row.
      measured: number of images of the measured forward pass; 0 = none.
      topology: name of the devices that a training step was compiled for; "" = none.
    """
    [key] = rows[0]["set"]
    names = ["tokens", "parameters", "FLOPs", "scores"]
    time, memory = (
        ("forward_seconds", "forward_peak")
        if measured
        else (
            "hyb_seconds",
            "peak",
        )
    )
    names += ["ms", "memory"] if measured or topology else []
    table = _table(key.removeprefix("model."), *names)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        cells = [
            f"{row['tokens']:,}",
            f"{row['params']:,}",
            si(row["flops_per_image"]),
            f"{row['attention_bytes'] / 2**20:,.2f} MiB",
        ]
        if len(names) > len(cells):
            cells.append(milliseconds(row[time]))
            cells.append(("≈ " if row["extrapolated"] else "") + byte_size(row[memory]))
        table.add_row(row["set"][key], *cells)
    console = _console()
    console.print(title)
    console.print(table)
    for reason in dict.fromkeys(left_out.values()):
        values = [value for value in left_out if left_out[value] == reason]
        _note(f"Left out: {', '.join(values)} ({reason}).")
    for note in _SWEPT:
        _note(note)
    if measured:
        images = f"{measured} image" + "s" * (measured > 1)
        _note(f"ms, memory: a forward pass of {images}, measured on this machine.")
    if topology:
        _note(f"ms (hyb), memory: a training step, per device of {topology}.")
    if any(row["extrapolated"] for row in rows):
        _note(_EXTRAPOLATED)


def _step(plan: Plan) -> str:
    measured = plan.measurement
    if measured.estimate is None:
        return "not estimated"
    arithmetic = plan.training_flops * plan.setup.config.batch_size
    ideal = arithmetic / plan.setup.mesh.size / plan.topology.peak_flops
    return (
        f"hyb {milliseconds(measured.hyb_seconds)} ms, "
        f"cyc {milliseconds(measured.cyc_seconds)} ms "
        f"(its FLOPs at the chip's peak: {milliseconds(ideal)} ms); "
        f"{si(measured.estimate.traffic_bytes)}B to and from memory"
    )


def _collectives(plan: Plan) -> str:
    found = plan.measurement.collectives
    if found is None:
        return ""
    each = [f"{n} {kind} of {byte_size(size)}" for kind, (n, size) in found.items()]
    return ", ".join(each) or "none"


def _table(*columns: str) -> Table:
    table = Table(
        box=None, pad_edge=False, header_style="bold", show_header=bool(columns)
    )
    for name in columns or ("", ""):
        table.add_column(name, overflow="fold")
    return table


def _console() -> Console:
    # In a pipe or a file every row must stay on one line.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def _note(text: str) -> None:
    if text:
        _console().print(text, style="dim", soft_wrap=not sys.stdout.isatty())


def _notes(rows: list[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> None:
    """Prints the problems of rows below a table, and the legend of "≈"."""
    for row in rows:
        if row["problem"]:
            _note(f"{name(row)}: {row['problem']}")
    if any(row["extrapolated"] for row in rows):
        _note(_EXTRAPOLATED)


def _yes(fits: bool) -> str:
    return "yes" if fits else "no"


def _about(row: dict[str, Any]) -> str:
    return "≈ " if row["extrapolated"] else ""
