"""Training steps that are compiled for this machine's CPU and timed in turn.

Scripts of this folder import it; it is no command.
"""

import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WARM_UP = 2  # rounds that do not count


def compiled_step(config: Any) -> Callable[[], None]:
    """Compiles the training step of a config; returns a function that runs it once.

    Parameters and batches are random, whatever weights and data the config names.
    """
    import jax

    from vit_jax import sharding
    from vit_jax.benchmark.compute import first_state, random_batch
    from vit_jax.train.programs import build

    mesh = sharding.make_mesh(data=1)
    step, arguments = build(config, mesh)
    compiled = step.lower(*arguments).compile()
    state, batch = first_state(config, "train", mesh), random_batch(arguments[1])

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Returns a function that runs another one and returns the seconds that it took."""

    def seconds() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def in_turn(
    steps: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Runs every step once a round, so that other work changes ratios little.

    Args:
      steps: name → a function that runs a step and returns its seconds.
      rounds: number of rounds that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + WARM_UP):
        for name, step in steps.items():
            took = step()
            if turn >= WARM_UP:
                seconds[name].append(took)
    return seconds


def median_ratio(some: Sequence[float], others: Sequence[float]) -> float:
    """Returns the median of the ratios within rounds."""
    return statistics.median(map(operator.truediv, some, others))
