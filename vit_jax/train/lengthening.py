"""Runs that become longer: from the steps that they share with the longer run.

With a constant or rsqrt schedule only the cooldown depends on a run's length. So a run
that has cooled down continues from the checkpoint before its cooldown, as in "Scaling
Vision Transformers" (arXiv:2106.04560, §3.5), with a new cooldown at its new end. What
it did in the old one is kept as a work directory of its own.
"""

import json
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax import config as config_lib
from vit_jax.checkpoints.buckets import move, remove
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.parts import DamagedError
from vit_jax.checkpoints.reading import load_description, saved_steps
from vit_jax.checkpoints.workdir import (
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    locate,
    write_atomically,
)
from vit_jax.config import Config
from vit_jax.optim.schedules import (
    cooldown_start,
    make_decay_factor,
    make_schedule,
)
from vit_jax.optim.sharpness import make_rho_schedule
from vit_jax.train.processes import cluster
from vit_jax.train.reporting.wandb_run import ID_FILE
from vit_jax.train.setup import Setup

logger = logging.getLogger(__name__)

# Keys that determine the learning rate of every step.
SCHEDULE = (
    "learning_rate",
    "schedule",
    "warmup_steps",
    "warmup_learning_rate",
    "min_learning_rate",
    "end_learning_rate",
    "rsqrt_timescale",
    "cooldown_steps",
    "total_steps",
)


class Resumed(NamedTuple):
    """The checkpoint from which a run continues.

    Attributes:
      earlier: its description.
      cooled: description of the newest checkpoint, if the run goes back from there.
    """

    earlier: Description
    cooled: Description | None = None


def resumed(workdir: str, newest: Description, setup: Setup) -> Resumed:
    """Finds the checkpoint from which a run continues; changes nothing.

    Args:
      workdir: the run's directory.
      newest: description of its newest checkpoint.
      setup: the run, which may have become longer.
    """
    same = same_rates(newest.config, setup.config, newest.step)
    if same or setup.objective.reads_schedule:
        return Resumed(newest)
    steps = saved_steps(locate(workdir) / CHECKPOINTS)
    shared = [step for step in steps if step < newest.step]
    for step in reversed(before_cooldown(newest.config, setup.config, shared)):
        try:
            return Resumed(load_description(workdir, step), newest)
        except DamagedError as error:
            logger.warning("%s", error)
    return Resumed(newest)


def before_cooldown(
    begun: Mapping[str, Any], now: Config, steps: Collection[int]
) -> list[int]:
    """Returns those of a run's steps from which it can become longer.

    Args:
      begun: the run's config.
      now: that of the longer run, resolved.
      steps: the saved steps, without the newest.

    Returns:
      None of them if the run does not become longer, or has not begun a cooldown.
    """
    then = scheduled(begun, now)
    if cooldown_start(then) is None or now.total_steps <= then.total_steps:
        return []
    return [step for step in steps if same_rates(begun, now, step)]


def set_aside(workdir: str, found: Resumed) -> None:
    """Moves a cooldown to WORKDIR/until-STEPS, if a run continues from before it.

    That directory then holds the run as it was, with its config, all its metrics and
    the checkpoints of its cooldown. An interruption at any point is harmless: the next
    start completes it.

    Args:
      workdir: the run's directory, which this run has claimed.
      found: where it continues.
    """
    if found.cooled is None:
        return
    directory, config = locate(workdir), found.cooled.config
    aside = directory / f"until-{config['total_steps']}"
    if cluster.first():
        checkpoints = aside / CHECKPOINTS
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomically(aside / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        # The writer of metrics cuts them back, once the checkpoints have been moved.
        metrics = directory / METRICS_FILE
        if metrics.exists():
            write_atomically(aside / METRICS_FILE, metrics.read_text(encoding="utf-8"))
        # Weights & Biases cannot go back: the longer run gets a page of its own there.
        identity = directory / ID_FILE
        if identity.exists():
            write_atomically(aside / ID_FILE, identity.read_text(encoding="utf-8"))
            identity.unlink()
        for step in saved_steps(directory / CHECKPOINTS)[::-1]:
            if step > found.earlier.step:
                target = checkpoints / str(step)
                if target.exists():
                    remove(target)
                move(directory / CHECKPOINTS / str(step), target)
        logger.info(
            "the run becomes longer: it continues from step %d, before its cooldown. "
            "The run of %d steps is kept in %s, which is a work directory of its own",
            found.earlier.step,
            config["total_steps"],
            aside,
        )
    cluster.wait_for_all("the first has moved the cooldown")


def same_rates(begun: Mapping[str, Any], now: Config, steps: int) -> bool:
    """Returns whether the first steps have the rates and decay of a run.

    Args:
      begun: the run's config.
      now: another one, resolved.
      steps: number of first steps to compare.
    """
    numbers = np.arange(steps)
    before, after = (
        [np.asarray(schedule(numbers)) for schedule in _schedules(config)]
        for config in (scheduled(begun, now), now)
    )
    return all(map(np.array_equal, before, after))


def scheduled(begun: Mapping[str, Any], now: Config) -> Config:
    """Returns a config with the learning rate of a run, by that one's config."""
    return config_lib.changed(
        now, {key: begun[key] for key in SCHEDULE if key in begun}
    )


def _schedules(config: Config) -> list[Callable[[Any], Any]]:
    decay = make_decay_factor(config) or np.ones_like
    found = [make_schedule(config), decay, make_rho_schedule(config)]
    if config.weight_decay_form == "independent":
        # The same rate is another share of another peak.
        found.append(lambda t: make_schedule(config)(t) / config.learning_rate)
    return found
