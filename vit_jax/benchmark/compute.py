"""Timing of the compiled step of training or inference, on random images."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from vit_jax.benchmark.peak import Peak
from vit_jax.config import Config, changed
from vit_jax.errors import Problems, UserError
from vit_jax.plan import flops
from vit_jax.progress import Progress
from vit_jax.train.memory import Bytes, is_out_of_memory
from vit_jax.train.programs import build, build_predict
from vit_jax.train.setup import set_up
from vit_jax.words import times

# --what → the function that builds the program, and the key of its batch size.
_PROGRAMS = {
    "train": (build, "batch_size"),
    "inference": (build_predict, "eval_batch_size"),
}
_WARM_UP = 2
_FEWEST = 5  # steps to time, however long they take


def measure_steps(
    config: Config, what: str, batch_sizes: list[int], seconds: float
) -> dict[str, Any]:
    """Times the compiled step at each batch size, with random weights and images.

    Args:
      config: a recipe with the overrides applied. Neither its weights nor its data set
        is read if the number of classes is known without them (`Setup`).
      what: "train" or "inference".
      batch_sizes: global batch sizes; empty = the recipe's own. Inference rounds them
        up to a multiple of the number of devices, as evaluation does.
      seconds: duration of timing each size; at least a few steps are timed.

    Returns:
      The device, its `matmul_flops_per_second` and the source of that, and the numbers
      of the batch size with the most images per second: `batch_size`,
      `images_per_second`, `step_ms` {median, p10, p90}, `compile_seconds`,
      `model_flops_per_second` (`vit_jax.plan.flops`: without recomputation),
      `matmul_share` of the peak, `peak_bytes` per device and the source of that.
      `sweep` has all batch sizes, the smallest first; one that does not fit into memory
      has `error` instead of the numbers.

    Raises:
      UserError: the recipe or a batch size is invalid, or no batch size fits.
    """
    _, key = _PROGRAMS[what]
    if not config.model.variant:
        raise UserError(
            "model.variant is empty, and benchmark does not open pretrained weights: "
            'name the variant, as in --config.model.variant="B/16"'
        )
    configs = [changed(config, {key: size}) for size in batch_sizes or [config[key]]]
    mesh = _checked(configs)
    setup = set_up(configs[0], mesh=mesh)
    if what == "train":
        per_image = flops.of_step(setup)
    else:
        per_image = flops.count(setup.architecture).total
    peak = Peak(mesh, setup.model.dtype)
    rows = []
    with Progress("measuring", len(configs), unit="batch sizes") as progress:
        for each in configs:
            row = {"batch_size": each[key]}
            try:
                row |= _measure(each, what, mesh, seconds, progress)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                row["error"] = "out of memory"
            rows.append(row)
            progress.advance()
    peak.measure()  # again, because the machine's other load changes
    for row in rows:
        if "error" not in row:
            rate = row["images_per_second"] * per_image
            share = rate / peak.flops_per_second
            row |= {"model_flops_per_second": rate, "matmul_share": share}
    fitting = [row for row in rows if "error" not in row]
    if not fitting:
        raise UserError(
            f"{key} {', '.join(str(row['batch_size']) for row in rows)}: out of "
            "memory; pass smaller sizes with --batch_sizes"
        )
    device = mesh.devices.flat[0]
    return {
        "what": what,
        "variant": config.model.variant,
        "image_size": list(setup.architecture.image_size),
        "compute_dtype": jnp.dtype(setup.model.dtype).name,
        "device": device.device_kind,
        "devices": mesh.size,
        "model_flops_per_image": per_image,
        "matmul_flops_per_second": peak.flops_per_second,
        "matmul_flops_source": peak.source,
        **max(fitting, key=lambda row: row["images_per_second"]),
        "sweep": rows,
    }


def _checked(configs: list[Config]) -> Mesh:
    """Returns the mesh of all configs; raises all of their problems, each once."""
    problems: dict[str, None] = {}
    mesh = None
    for config in configs:
        try:
            mesh = set_up(config).mesh
        except UserError as error:
            problems |= dict.fromkeys(str(error).split("\n"))
    if problems:
        raise Problems(*problems)
    assert mesh is not None
    return mesh


def _measure(
    config: Config, what: str, mesh: Mesh, seconds: float, progress: Progress
) -> dict[str, Any]:
    """Times one batch size."""
    program, key = _PROGRAMS[what]
    which = f"batch size {config[key]}"
    step, arguments = program(config, mesh)
    with progress.phase(f"{which}: compiling"), _nothing_kept():
        start = time.perf_counter()
        lowered = step.lower(*arguments)
        lower_seconds = time.perf_counter() - start
        start = time.perf_counter()
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - start

    state = first_state(config, what, mesh)
    batch, *extra = map(random_batch, arguments[1:])
    jax.block_until_ready((state, batch, extra))

    def run() -> None:
        nonlocal state
        given = compiled(state, batch, *extra)
        if what == "train":
            state, given = given  # the step donates its state
        jax.block_until_ready(given)

    with progress.phase(f"{which}: timing"):
        times = np.array(_timed(run, seconds))
    median, p10, p90 = (float(np.percentile(times, q)) for q in (50, 10, 90))
    peak_bytes, source = _peak_bytes(compiled, mesh)
    return {
        "batch_size": _rows(arguments[1]),
        "images_per_second": _rows(arguments[1]) / median,
        "step_ms": {"median": median * 1e3, "p10": p10 * 1e3, "p90": p90 * 1e3},
        "steps": len(times),
        "lower_seconds": lower_seconds,
        "compile_seconds": compile_seconds,
        "peak_bytes": peak_bytes,
        "peak_bytes_source": source,
    }


def _timed(run: Callable[[], None], seconds: float) -> list[float]:
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    while len(times) < _FEWEST or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def first_state(config: Config, what: str, mesh: Mesh) -> Any:
    """Makes random parameters or a whole training state, each shard on its device."""
    setup = set_up(config, mesh=mesh)
    where = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
    if what == "inference":
        return jax.jit(setup.init_params, out_shardings=where.params)()
    return jax.jit(lambda: setup.new_state(setup.init_params()), out_shardings=where)()


def random_batch(abstract: Any) -> Any:
    """Makes a batch of random images with class 0 and mask 1."""

    def make() -> Any:
        return jax.tree.map_with_path(_column, abstract)

    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))()


def _column(path: Any, column: jax.ShapeDtypeStruct) -> jax.Array:
    if column.dtype == jnp.uint8:
        return jax.random.bits(jax.random.key(0), column.shape, jnp.uint8)
    counts = jax.tree_util.keystr(path, simple=True) == "mask"
    return jnp.full(column.shape, int(counts), column.dtype)


def _rows(batch: Any) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _peak_bytes(compiled: jax.stages.Compiled, mesh: Mesh) -> tuple[int, str]:
    """Returns the peak memory of the device that needs most, and its source."""
    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in here]
    if all("peak_bytes_in_use" in each for each in stats):
        return max(each["peak_bytes_in_use"] for each in stats), "device"
    return Bytes.of(compiled.memory_analysis()).peak, "compiler"


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    """Disables the persistent compilation cache, for reading and writing."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    # JAX otherwise decides once per process whether it uses the cache.
    compilation_cache.reset_cache()
    jax.config.update(name, False)
    try:
        yield
    finally:
        compilation_cache.reset_cache()
        jax.config.update(name, before)


def show(report: dict[str, Any]) -> None:
    """Prints the result of `measure_steps` as a table."""
    from rich.console import Console
    from rich.table import Table

    columns = ("batch", "images/s", "step ms (p10 – p90)", "TFLOP/s", "of the peak")
    table = Table(*columns, "GiB", "compiled in")
    for row in report["sweep"]:
        table.add_row(str(row["batch_size"]), *_cells(row))
    # In a pipe or a file every row must stay on one line.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
    source = next(r["peak_bytes_source"] for r in report["sweep"] if "error" not in r)
    console.print(
        f"{report['what']}, {report['variant']} at {times(report['image_size'])}, "
        f"{report['compute_dtype']}, {report['devices']} × {report['device']}\n"
        f"{report['model_flops_per_image'] / 1e9:.1f} GFLOP per image; the peak is "
        f"{report['matmul_flops_per_second'] / 1e12:.3g} TFLOP/s "
        f"({report['matmul_flops_source']}); memory according to the {source}",
        soft_wrap=True,
    )


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["error"]]
    ms = row["step_ms"]
    return [
        f"{row['images_per_second']:,.1f}",
        f"{ms['median']:,.1f} ({ms['p10']:,.1f} – {ms['p90']:,.1f})",
        f"{row['model_flops_per_second'] / 1e12:.3g}",
        f"{row['matmul_share']:.0%}",
        f"{row['peak_bytes'] / 2**30:.2f}",
        f"{row['compile_seconds']:.1f} s",
    ]
