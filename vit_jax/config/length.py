"""The length of a run in steps, derived from steps or epochs."""

from collections.abc import Collection

from vit_jax.config.checks import out_of_range
from vit_jax.config.keys import Config


def override_length(config: Config, overridden: Collection[str]) -> Config:
    """Clears the recipe's steps or epochs if the command line sets the other.

    Args:
      config: a recipe with the command line's overrides applied.
      overridden: the dotted keys that the command line has set.
    """
    given = {"total_steps", "total_epochs"} & set(overridden)
    config = config.copy_and_resolve_references()
    if given == {"total_steps"}:
        config.total_epochs = None
    if given == {"total_epochs"}:
        config.total_steps = None
    return config


def resolve(config: Config, num_examples: int) -> Config:
    """Converts total_epochs to total_steps; a run saves the result.

    An invalid length is left as it is, for `problems` to report.

    Args:
      config: a complete config.
      num_examples: size of the training split.
    """
    config = config.copy_and_resolve_references()
    sound = "total_epochs" not in out_of_range(config)
    if config.total_steps is None and config.total_epochs is not None and sound:
        steps = config.total_epochs * num_examples / max(config.batch_size, 1)
        config.total_steps = max(1, round(steps))
        config.total_epochs = None
    return config


def wrong_length(config: Config) -> list[str]:
    """Lists why there is no length, or why the schedule does not fit into it."""
    if config.total_steps is not None and config.total_epochs is not None:
        return ["total_steps and total_epochs are both given; give only one"]
    if config.total_steps is None:
        if config.total_epochs is not None:
            return []  # out of range, and reported as such
        return ["total_steps and total_epochs are both empty; give one"]
    found = []
    if config.warmup_steps >= config.total_steps:
        found.append(
            f"warmup_steps={config.warmup_steps} must be less than "
            f"total_steps={config.total_steps}"
        )
    elif config.warmup_steps + config.cooldown_steps > config.total_steps:
        found.append(
            f"warmup_steps + cooldown_steps = "
            f"{config.warmup_steps + config.cooldown_steps} must not exceed "
            f"total_steps={config.total_steps}"
        )
    return found
