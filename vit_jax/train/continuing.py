"""The changes with which a run may continue: data elsewhere, another length."""

import contextlib
import logging
import os
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vit_jax import config as config_lib
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.reading import has_checkpoint, saved_steps
from vit_jax.checkpoints.workdir import (
    CHECKPOINTS,
    differences,
    is_among,
    locate,
    normalised,
    recorded_config,
)
from vit_jax.config import Config
from vit_jax.data.sources.options import FIRST_RULES
from vit_jax.errors import Problems, UserError, problems_of
from vit_jax.optim.schedules import cooldown_start
from vit_jax.train.lengthening import (
    SCHEDULE,
    before_cooldown,
    same_rates,
    scheduled,
)
from vit_jax.train.same_data import DataFacts, check_same_data
from vit_jax.train.setup import Setup
from vit_jax.words import shortened

logger = logging.getLogger(__name__)

# Keys that say where the data are, which `check_same_data` recognises elsewhere.
LOCATIONS = ("dataset", "data.image_root")
# Keys by which the data are read.
READING = ("data", "train_split", "eval_split")
_WEIGHTS_ARE_READ_ONCE = (
    "Pretrained weights are read only when a run begins: to continue that run, pass "
    "its value of `pretrained`, even if nothing is there any more."
)


class Changes(NamedTuple):
    """The changes of the config with which a run may continue.

    Attributes:
      free: keys that may differ, besides those that always may.
      advice: key that may not → what to do instead.
    """

    free: frozenset[str]
    advice: Mapping[str, str]


NO_CHANGES = Changes(frozenset(), {})


def allowed_changes(
    setup: Setup,
    facts: DataFacts,
    earlier: Description | None,
    workdir: str,
    base: Mapping[str, str] = MappingProxyType({}),
) -> Changes:
    """Finds the keys that may differ from those of the run so far.

    Data may have moved if they are the same. Keys of the learning rate may differ if
    every step already made would have had the same rate.

    Args:
      setup: the run.
      facts: what identifies its data.
      earlier: description of the checkpoint that the run resumes from.
      workdir: the run's directory.
      base: record of the pretrained weights, if they were read again; they are then
        known to be the same, wherever they lie.

    Raises:
      UserError: the data are not those that the run was trained on so far, or it has
        already made more steps than it should.
    """
    config = setup.config
    if earlier is None:
        begun = recorded_config(workdir)
        same = begun is not None and _same_name(begun.get("dataset", ""), config)
        return Changes(frozenset(LOCATIONS if same else ()), {})
    kept = not setup.objective.reads_schedule and same_rates(
        earlier.config, config, earlier.step
    )
    free: set[str] = set(SCHEDULE if kept else ())
    free.update(["pretrained"] if base else [])
    others = _other_values(config, earlier.config)
    read_otherwise = [others.pop(key) for key in [*others] if is_among(key, READING)]
    problems = []
    try:
        if check_same_data(config.dataset, facts, earlier, read_otherwise):
            free.update(LOCATIONS)
    except UserError as error:
        problems += problems_of(error)
    if other_facts := _other_facts(setup, earlier):
        problems.append(other_facts)
    else:
        free.update(setup.objective.locations)
    if earlier.step > config.total_steps:
        others.pop("total_steps", None)
        problems.append(
            f"{workdir} has already made {earlier.step:,} steps, more than "
            f"total_steps={config.total_steps:,}; to continue it, pass its own "
            f"--config.total_steps={earlier.config['total_steps']}; to start this run, "
            "pass another --workdir"
        )
    if problems:
        told = [others[key] for key in others if key not in {*free, *LOCATIONS}]
        if told:
            problems.append(f"Other keys differ from that run's too: {shortened(told)}")
        raise Problems(*problems)
    advice = {"pretrained": _WEIGHTS_ARE_READ_ONCE}
    if kept:
        return Changes(frozenset(free), advice)
    if setup.objective.reads_schedule:
        reason = f"The objective {config.objective} may depend on the run's length"
    else:
        reason = (
            f"With schedule={config.schedule} and these values, the {earlier.step:,} "
            "steps already made would have had other learning rates"
            + " or weight decay"
            * (config.weight_decay_end is not None)
        )
        start = cooldown_start(scheduled(earlier.config, config))
        if start is not None and config.total_steps > earlier.step:
            reason += (
                f", and no checkpoint is left from before its cooldown, at step "
                f"{start:,} or earlier, from which it could become longer"
            )
    advice["total_steps"] = (
        f"{reason}, so this is another run. {_another_run(config, earlier, workdir)}"
    )
    return Changes(frozenset(free), advice)


def _other_facts(setup: Setup, earlier: Description) -> str:
    """Says that the objective has read other things than in the run so far."""
    now, then = normalised(setup.objective_facts), earlier.objective
    if now == then:
        return ""
    names = [name for name in {**then, **now} if now.get(name) != then.get(name)]
    found = ", ".join(
        f"{name} {now.get(name, 'none')} (before: {then.get(name, 'none')})"
        for name in names
    )
    return (
        f"the objective {setup.config.objective} has read other things than in the run "
        f"so far: {found}. Restore them to continue that run, or pass another --workdir"
    )


def tell_of_similar_run(workdir: str, config: Config) -> None:
    """Logs that there is a run that this new one may be meant to continue.

    The name of a work directory depends on where the data are and on the length.

    Args:
      workdir: the new run's directory; the other one is beside it.
      config: the new run's, resolved.
    """
    folder = locate(workdir).parent
    beside = sorted(folder.iterdir()) if folder.is_dir() else []
    for other in beside:
        if not other.name.startswith(f"{config.name}-") or not has_checkpoint(other):
            continue
        begun = None
        with contextlib.suppress(UserError, OSError):
            begun = recorded_config(other)
        if begun is None or not _same_name(begun.get("dataset", ""), config):
            continue
        told = _other_values(config, begun)
        told.pop("data.rules", None)
        if told and told.keys() <= {*LOCATIONS, *SCHEDULE}:
            directory = os.path.relpath(other)
            steps = saved_steps(other / CHECKPOINTS)
            last, longer = max(steps, default=0), before_cooldown(begun, config, steps)
            same = last <= config.total_steps and same_rates(begun, config, last)
            if same or longer:
                how = f"To continue that one, pass --workdir={shlex.quote(directory)}"
            else:
                how = "It cannot continue so, because its past steps would differ"
            logger.info(
                "this is a new run; %s holds one that differs only in %s. %s",
                directory,
                ", ".join(told.values()),
                how,
            )


def _other_values(config: Config, begun: Mapping[str, Any]) -> dict[str, str]:
    """Finds the keys that differ from a run's config and are not free to change."""
    told = differences(begun, config_lib.to_plain(config), defaults_of_old_runs())
    free = config_lib.FREE_TO_CHANGE
    return {key: text for key, text in told.items() if not is_among(key, free)}


def defaults_of_old_runs() -> dict[str, Any]:
    """Returns the values of keys that a recorded config lacks."""
    defaults = config_lib.to_plain(config_lib.default_config())
    defaults["data"]["rules"] = FIRST_RULES
    return defaults


def _same_name(dataset: str, config: Config) -> bool:
    return os.path.basename(dataset) == os.path.basename(config.dataset)


def _another_run(config: Config, earlier: Description, workdir: str) -> str:
    """Says how to train the model for longer in a new run."""
    more = config.total_steps - earlier.step
    if not more:
        return ""
    values: dict[str, Any] = {
        "pretrained": workdir,
        "reset_head": "false",
        "total_steps": more,
    }
    if config.warmup_steps + config.cooldown_steps >= more:
        values |= {"warmup_steps": 0, "cooldown_steps": 0}
    return (
        "To train this model for longer, begin a new run with its weights, a warm "
        f"restart, in another --workdir:\n  {config_lib.as_flags(values)}\n(A run with "
        "a constant or rsqrt schedule needs no new one: with a larger total_steps it "
        "continues, if need be from the checkpoint before its cooldown.)"
    )
