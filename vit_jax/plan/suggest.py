"""The largest batch that fits, and the effect and cost of each way to save memory."""

import math
from collections.abc import Callable
from typing import Any

from vit_jax import sharding
from vit_jax.config import Config, as_flags, changed
from vit_jax.errors import UserError
from vit_jax.plan.plans import Plan, logger, measure_step
from vit_jax.plan.scaling import Prediction, as_measured, is_shallow, predict
from vit_jax.train.memory import CHANGES
from vit_jax.train.setup import Setup

# Sets up a run from a config; raises UserError if the config is invalid.
Prepare = Callable[[Config], Setup]

# Keys of `CHANGES`, in the order shown.
_OFFERED = (
    "recompute all but products",
    "recompute all",
    "shorten the momentum",
    "accumulate twice",
    "accumulate four times",
    "spread parameters",
)
# Share of memory left over at which the search ends, because every further step
# compiles the whole model.
_LEFT = 0.02
_MOST_TRIES = 6  # models small enough to need so many compile quickly


def suggest(plan: Plan, prepare: Prepare) -> dict[str, Any]:
    """Finds the largest batch and evaluates changes that save memory.

    Args:
      plan: the plan of the unchanged recipe.
      prepare: sets up the recipe with other values.

    Returns:
      JSON values.
      `largest_batch`: that of the unchanged recipe: `batch_size`, 0 if none fits, and
        its `peak` in bytes.
      `changes`: for each change the keys to `set`; its `peak`, and whether it `fits`;
        `time` of a step as a multiple of the recipe's, by both estimates, null if there
        are none; whether it is `extrapolated` from models with fewer blocks; `problem`,
        if the change is impossible. If none fits, the last one is all of them together.
    """
    # Predicted in the same way as the changes, to be comparable with them.
    base = as_measured(plan.measurement)
    if plan.topology.has_estimates and not is_shallow(plan.setup):
        base = predict(plan.setup, plan.topology, "the recipe as it is")
    offered = (CHANGES[name].values(plan.setup) for name in _OFFERED)
    rows = [_row(change, base, prepare, plan) for change in offered if change]
    if not plan.measurement.fits and not any(row["fits"] for row in rows):
        possible = [row["set"] for row in rows if not row["problem"]]
        everything = {key: value for keys in possible for key, value in keys.items()}
        rows.append(_row(everything, base, prepare, plan))
    return {"largest_batch": _largest_batch(plan, prepare), "changes": rows}


def _row(
    change: dict[str, Any], base: Prediction, prepare: Prepare, plan: Plan
) -> dict[str, Any]:
    nothing = {"peak": None, "fits": False, "time": None, "extrapolated": False}
    try:
        setup = prepare(changed(plan.setup.config, change))
    except UserError as error:
        return {"set": change, **nothing, "problem": str(error)}
    found = predict(setup, plan.topology, as_flags(change))
    time = None
    if base.seconds and found.seconds:
        both = zip(found.seconds, base.seconds, strict=True)
        time = dict(zip(("hyb", "cyc"), (new / old for new, old in both), strict=True))
    return {
        "set": change,
        "peak": found.peak_bytes,
        "fits": found.fits,
        "time": time,
        "extrapolated": found.extrapolated,
        "problem": None,
    }


def _largest_batch(plan: Plan, prepare: Prepare) -> dict[str, Any]:
    """Searches by linear interpolation until a batch nearly fills the memory.

    Batches per device are multiples of eight, the rows of a register, unless the
    recipe's own is not.
    """
    config, topology = plan.setup.config, plan.topology
    unit = sharding.batch_parts(plan.setup.mesh) * config.accum_steps
    unit = math.lcm(unit, config.augment.repeats)
    if config.batch_size % (8 * unit) == 0:
        unit *= 8

    peaks = {config.batch_size: plan.measurement.bytes.peak}
    fitting = {config.batch_size} if plan.measurement.fits else set()
    guess = config.batch_size // 2 // unit * unit or 2 * config.batch_size
    for _ in range(_MOST_TRIES):
        logger.info("compiling: --config.batch_size=%d", guess)
        setup = prepare(changed(config, {"batch_size": guess}))
        measured = measure_step(setup, topology)
        peaks[guess] = measured.bytes.peak
        if measured.fits:
            fitting.add(guess)
        guess = _next_guess(peaks, fitting, topology.usable_bytes, unit)
        if not guess:
            break
    best = max(fitting, default=0)
    return {"batch_size": best, "peak": peaks.get(best)}


def _next_guess(
    peaks: dict[int, int], fitting: set[int], usable: int, unit: int
) -> int:
    """Returns the batch to try next, a multiple of `unit`; 0 ends the search.

    Args:
      peaks: batch size → bytes, for at least two sizes.
      fitting: the sizes that fit.
      usable: bytes available.
      unit: batches are multiples of it.
    """
    below = max(fitting, default=0)
    above = min(peaks.keys() - fitting, default=math.inf)
    if below and peaks[below] >= (1 - _LEFT) * usable:
        return 0
    # The line through the two sizes whose peaks are nearest to the available memory.
    a, b = sorted(peaks, key=lambda size: abs(peaks[size] - usable))[:2]
    slope = (peaks[b] - peaks[a]) / (b - a)
    guess = math.inf if slope <= 0 else a + (usable - peaks[a]) / slope
    guess = min(guess, above - unit, 8 * max(peaks))
    guess = int(guess // unit * unit)
    return guess if guess > below else 0
