"""Timing of a training run's input on this machine.

Measures the iterator that training uses, with the run's own data, transforms, threads
and processes. Stages are timed in one thread, by their processor time.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.words import byte_size

_STAGE_IMAGES = 256


def measure_input(config: Any, seconds: float) -> dict[str, Any]:
    """Times the input of a training run.

    Args:
      config: a recipe with the overrides applied.
      seconds: duration of timing the whole pipeline.

    Returns:
      `images_per_second` of the whole and `images_per_second_per_core` (of the cores
      that this process may use); `stages`: {name: {images_per_second_per_core, share of
      the time}}; `first_batch_seconds`, from opening the split; `waiting`, the share of
      time that steps would wait for their batch if they took a quarter longer than a
      batch; `peak_bytes` of this process's memory.
    """
    from vit_jax import sharding
    from vit_jax.data.loading.batches import cores, train_batches
    from vit_jax.host_memory import peak_bytes
    from vit_jax.progress import Progress
    from vit_jax.train.setup import set_up

    setup = set_up(config)
    config = setup.config
    start = time.perf_counter()
    source = setup.dataset.split(setup.info.train_split)

    def batches(first: int) -> Any:
        return train_batches(
            source,
            batch_size=config.batch_size,
            transform=setup.train_transforms,
            channels=setup.architecture.channels,
            white_level=setup.preprocessing.white_level,
            seed=config.seed,
            start=first,
            stop=1 << 40,
            bad_images=config.bad_images,
            num_threads=config.loader_threads,
            num_processes=config.loader_processes,
            sampling=config.sampling,
            repeats=config.augment.repeats,
            aligned=setup.aligned,
        )

    with Progress("measuring", None, unit="batches") as progress:
        with batches(0) as stream:
            with progress.phase("loading the first batch"):
                batch = next(stream)
            first = time.perf_counter() - start
            # Batches that were ready before the clock started do not count.
            for _ in range(3):
                sharding.place(next(stream), setup.mesh)
            count, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                sharding.place(next(stream), setup.mesh)
                count += 1
                progress.advance()
            rate = count * config.batch_size / elapsed
            with progress.phase("measuring how long steps would wait"):
                step = 1.25 * config.batch_size / rate
                waiting = _waiting(stream, step, seconds / 2)
        with progress.phase("timing the stages"):
            stages = _stages(setup, source, batch)
    total = sum(stages.values())
    return {
        "images_per_second": rate,
        "images_per_second_per_core": rate / cores(),
        "cores": cores(),
        "stages": {
            name: {"images_per_second_per_core": 1 / cost, "share": cost / total}
            for name, cost in stages.items()
        },
        "first_batch_seconds": first,
        "waiting": waiting,
        "peak_bytes": peak_bytes(),
    }


def _waiting(stream: Iterator[Any], step: float, seconds: float) -> float:
    """Measures the share of time that steps of `step` seconds wait for their batch."""
    from vit_jax.train.reporting.metrics import Stopwatch

    for _ in range(2):  # start with as many batches ready as a run has
        time.sleep(step)
        next(stream)
    clock = Stopwatch()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        time.sleep(step)  # a step on an accelerator does not use this machine's cores
        with clock.waiting():
            next(stream)
    return clock.lap(0)["waiting"]


def _stages(setup: Any, source: Any, batch: Any) -> dict[str, float]:
    """Measures processor seconds per image, by stage."""
    import jax
    import numpy as np

    from vit_jax import sharding
    from vit_jax.data.preprocessing import opened, to_pixels

    count = min(_STAGE_IMAGES, 4 * len(source))
    channels, chains = setup.architecture.channels, setup.train_transforms.values()
    white = setup.preprocessing.white_level

    def timed(action: Callable[[], Any], images: int) -> tuple[float, Any]:
        start = time.process_time()
        result = action()
        return (time.process_time() - start) / images, result

    def augmented(images: Any) -> Any:
        draws = [np.random.default_rng((0, position)) for position in range(count)]
        return timed(
            lambda: [
                chain(image, draw)
                for image, draw in zip(images, draws, strict=True)
                for chain in chains
            ],
            count,
        )

    read, examples = timed(
        lambda: [source[index % len(source)] for index in range(count)], count
    )
    # Files are decoded only as far as their crop reaches, so decoding is timed together
    # with augmenting and is the difference.
    both, images = augmented(
        opened(e.image, channels, e.name, True, white) for e in examples
    )
    augment, _ = augmented(
        [to_pixels(e.image, channels, e.name, white) for e in examples]
    )
    decode = both - augment
    stack, _ = timed(lambda: np.stack(images), count)
    copy, _ = timed(
        lambda: jax.block_until_ready(sharding.place(batch, setup.mesh)),
        len(batch["mask"]),
    )
    costs = {"read": read, "decode": decode, "augment": augment, "batch": stack}
    # A stage too short for the clock gets a positive time.
    return {name: max(cost, 1e-9) for name, cost in (costs | {"copy": copy}).items()}


def show(report: dict[str, Any]) -> None:
    """Prints the result of `measure_input` as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "images/s/core", "share of the time")
    for name, stage in report["stages"].items():
        rate, share = stage["images_per_second_per_core"], stage["share"]
        table.add_row(name, f"{rate:,.0f}", f"{share:.0%}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"whole pipeline: {report['images_per_second']:,.0f} images/s on "
        f"{report['cores']} cores, {report['images_per_second_per_core']:,.0f} per "
        f"core\n"
        f"first batch after {report['first_batch_seconds']:.1f} s; steps a quarter "
        f"longer than a batch would wait {report['waiting']:.1%} of the time\n"
        f"peak memory {byte_size(report['peak_bytes'])}",
        soft_wrap=True,
    )
