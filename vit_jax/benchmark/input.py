"""How fast this machine feeds a training run.

Times the iterator that training uses, on the run's own data, transforms, threads and
processes. Stages are timed in one thread, by the processor time they take.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

_STAGE_IMAGES = 256


def measure_input(config: Any, seconds: float) -> dict[str, Any]:
    """Times the input of a training run.

    Args:
      config: a recipe with the overrides applied.
      seconds: how long the whole pipeline is timed.

    Returns:
      `images_per_second` of the whole and `images_per_second_per_core` (of those this
      process may use); `stages`: {name: {images_per_second_per_core, share of the
      time}}; `first_batch_seconds` from opening the split on; `waiting`, the share of
      time that steps wait which take a quarter longer than a batch does here;
      `peak_bytes` of this process's memory.
    """
    from vit_jax import sharding
    from vit_jax.data.loading.batches import cores, train_batches
    from vit_jax.host_memory import peak_bytes
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
            seed=config.seed,
            start=first,
            stop=1 << 40,
            bad_images=config.bad_images,
            num_threads=config.loader_threads,
            num_processes=config.loader_processes,
            sampling=config.sampling,
            repeats=config.augment.repeats,
        )

    with batches(0) as stream:
        batch = next(stream)
        first = time.perf_counter() - start
        # What was ready before the clock started does not count.
        for _ in range(3):
            sharding.place(next(stream), setup.mesh)
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            sharding.place(next(stream), setup.mesh)
            count += 1
        rate = count * config.batch_size / elapsed
        waiting = _waiting(stream, 1.25 * config.batch_size / rate, seconds / 2)
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
    """Share of time that steps of so many seconds wait for their batch."""
    from vit_jax.train.reporting.metrics import Stopwatch

    for _ in range(2):  # to begin with as many batches ready as in a run
        time.sleep(step)
        next(stream)
    clock = Stopwatch()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        time.sleep(step)  # as an accelerator computes, without this machine's cores
        with clock.waiting():
            next(stream)
    return clock.lap(0)["waiting"]


def _stages(setup: Any, source: Any, batch: Any) -> dict[str, float]:
    """Processor seconds an image, by stage."""
    import jax
    import numpy as np

    from vit_jax import sharding
    from vit_jax.data.preprocessing import opened, to_pixels

    count = min(_STAGE_IMAGES, 4 * len(source))
    channels, chains = setup.architecture.channels, setup.train_transforms.values()

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
    # A file is decoded as far as its crop reaches: what that adds to the rest.
    both, images = augmented(
        opened(e.image, channels, e.name, fast=True) for e in examples
    )
    augment, _ = augmented([to_pixels(e.image, channels, e.name) for e in examples])
    decode = both - augment
    stack, _ = timed(lambda: np.stack(images), count)
    copy, _ = timed(
        lambda: jax.block_until_ready(sharding.place(batch, setup.mesh)),
        len(batch["mask"]),
    )
    costs = {"read": read, "decode": decode, "augment": augment, "batch": stack}
    # Too short to be seen by the clock is not free.
    return {name: max(cost, 1e-9) for name, cost in (costs | {"copy": copy}).items()}


def show(report: dict[str, Any]) -> None:
    """Prints what `measure_input` gave, for people."""
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
        f"{report['cores']} cores, {report['images_per_second_per_core']:,.0f} a core\n"
        f"first batch after {report['first_batch_seconds']:.1f} s; a step a quarter "
        f"longer than a batch waits {report['waiting']:.1%} of the time\n"
        f"peak memory {report['peak_bytes'] / 2**20:,.0f} MiB",
        soft_wrap=True,
    )
