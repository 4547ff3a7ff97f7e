"""Finds values that exclude each other; lists everything that is wrong."""

from vit_jax.config.checks import Choices, wrong_values
from vit_jax.config.keys import ARCHITECTURE_KEYS, Config, default_config
from vit_jax.config.length import wrong_length


def problems(
    config: Config, choices: Choices, *, num_devices: int, other_meshes: str = ""
) -> list[str]:
    """Finds everything that is wrong with a resolved config, one line for each.

    Args:
      config: the config.
      choices: valid values of the keys that have only a few.
      num_devices: that a batch is spread over.
      other_meshes: on which the batch could be spread.
    """
    found = list(wrong_values(config, choices).values())
    found += wrong_mixing(config) + wrong_average(config) + wrong_length(config)
    if config.batch_size >= 1 and config.accum_steps >= 1:
        unit = num_devices * config.accum_steps
        if config.batch_size % unit:
            below = config.batch_size // unit * unit
            nearest = f"{below} or {below + unit}" if below else f"{unit}"
            nearest += f", or {other_meshes}" if other_meshes else ""
            found.append(
                f"batch_size={config.batch_size} must be divisible by {num_devices} "
                f"devices × accum_steps={config.accum_steps} = {unit}: use {nearest}"
            )
        if config.augment.repeats >= 1 and config.batch_size % config.augment.repeats:
            found.append(
                f"augment.repeats={config.augment.repeats} must divide "
                f"batch_size={config.batch_size}"
            )
    if not config.model.variant:
        found += _architecture_without_variant(config)
    return found


def wrong_mixing(config: Config) -> list[str]:
    """What of the mixing's keys does not go together, one line each."""
    found, mixing = [], config.mixing
    if mixing.form == "big_vision" and mixing.cutmix_alpha > 0:
        found.append(
            f"mixing.cutmix_alpha={mixing.cutmix_alpha}: the form 'big_vision' has no "
            "CutMix; use mixing.form=timm, or leave it at 0"
        )
    if mixing.form == "big_vision" and mixing.prob != 1:
        found.append(
            f"mixing.prob={mixing.prob}: the form 'big_vision' mixes every step; use "
            "mixing.form=timm, or leave it at 1"
        )
    if mixing.binary_targets and config.loss != "sigmoid":
        found.append(
            f"mixing.binary_targets with loss={config.loss}: several classes may be "
            "right, which only loss=sigmoid can learn"
        )
    return found


def wrong_average(config: Config) -> list[str]:
    """What of the averaged weights' keys does not go together."""
    if config.ema_warmup and not config.ema_decay:
        return ["ema_warmup without ema_decay: there is no average; set ema_decay"]
    return []


def _architecture_without_variant(config: Config) -> list[str]:
    if not config.pretrained:
        return [
            "model.variant is empty and so is pretrained: name a variant "
            '(such as "B/16") or a pretrained checkpoint that has one'
        ]
    default = default_config()
    return [
        f"model.{key}={config.model[key]!r}: with an empty model.variant the "
        "architecture is that of the pretrained file; set "
        f"--config.model.{key}={default.model[key]}, or name the variant"
        for key in ARCHITECTURE_KEYS
        # Not every file says how many heads there are, so they may be given.
        if key != "num_heads" and config.model[key] != default.model[key]
    ]
