"""Checks of single config values: choices, ranges, forms."""

import math
import re
from collections.abc import Collection, Iterable, Mapping

from vit_jax.config.keys import Config
from vit_jax.config.values import value_of
from vit_jax.errors import UserError
from vit_jax.words import did_you_mean

# Key → its valid values. vit_jax/train/choices.py takes them from the tables that
# implement them, which vit_jax/config must not import.
Choices = Mapping[str, Collection[str]]

# Keys with a range: (smallest, largest), inclusive.
RANGES = {
    "seed": (0, 2**32 - 1),
    "batch_size": (1, math.inf),
    "eval_batch_size": (1, math.inf),
    "max_bad_images": (0.0, 1.0),
    "loader_threads": (1, 1024),
    "loader_processes": (0, 1024),
    "augment.repeats": (1, math.inf),
    "mixing.mixup_alpha": (0.0, 1000.0),
    "mixing.cutmix_alpha": (0.0, 1000.0),
    "mixing.prob": (0.0, 1.0),
    "mixing.switch_prob": (0.0, 1.0),
    "mixing.erasing_prob": (0.0, 1.0),
    "mixing.erasing_count": (1, 64),
    "model.width": (0, math.inf),
    "model.depth": (0, math.inf),
    "model.mlp_dim": (0, math.inf),
    "model.num_heads": (0, math.inf),
    "model.tokens_mlp_dim": (0, math.inf),
    "model.channels": (1, math.inf),
    "model.registers": (0, math.inf),
    "model.pre_logits": (-1, math.inf),
    "model.layernorm_epsilon": (1e-12, 1e-2),
    "model.layer_scale": (0.0, math.inf),
    "model.dropout_rate": (0.0, 0.99),
    "model.head_std": (0.0, 1.0),
    "model.stochastic_depth": (0.0, 0.99),
    "lora.rank": (0, math.inf),
    "lora.alpha": (0.0, math.inf),
    "lora.dropout": (0.0, 0.99),
    "prompts.count": (0, math.inf),
    "prompts.dropout": (0.0, 0.99),
    "label_smoothing": (0.0, 1.0),
    "b1": (0.0, 0.999999),
    "b2": (0.0, 0.999999),
    "momentum": (0.0, 0.999999),
    "eps": (1e-30, 1.0),
    "weight_decay": (0.0, math.inf),
    "weight_decay_end": (0.0, math.inf),
    "head_only_steps": (0, math.inf),
    "layer_decay": (1e-6, 1.0),
    "layer_decay_min": (0.0, 1.0),
    "grad_clip_adaptive": (0.0, math.inf),
    "grad_clip_norm": (0.0, math.inf),
    "grad_clip_parameter_norm": (0.0, math.inf),
    "ema_decay": (0.0, 0.9999999),
    "max_loss_spike": (0.0, math.inf),
    "accum_steps": (1, math.inf),
    "learning_rate": (0.0, math.inf),
    "warmup_steps": (0, math.inf),
    "warmup_learning_rate": (0.0, math.inf),
    "min_learning_rate": (0.0, math.inf),
    "end_learning_rate": (0.0, math.inf),
    "rsqrt_timescale": (1, math.inf),
    "cooldown_steps": (0, math.inf),
    "total_steps": (1, 2**31 - 1),
    "total_epochs": (1e-9, math.inf),
    "mesh.data": (-1, math.inf),
    "mesh.fsdp": (-1, math.inf),
    "mesh.tensor": (-1, math.inf),
    "log_every": (1, math.inf),
    "eval_every": (0, math.inf),
    "checkpoint_every": (1, math.inf),
    "keep_checkpoints": (1, math.inf),
    "patience": (0, math.inf),
    "patience_min_delta": (0.0, math.inf),
}


def wrong_values(config: Config, choices: Choices) -> dict[str, str]:
    """Finds keys whose value is invalid, whatever the other values are.

    Args:
      config: the config.
      choices: valid values of the keys that have only a few.

    Returns:
      Key → why its value is invalid.
    """
    found = wrong_choices(config, choices) | out_of_range(config)
    size = config.image_size
    whole = all(type(side) is int and side > 0 for side in size)
    if not 1 <= len(size) <= 2 or not whole:
        found["image_size"] = (
            f"image_size={size}: give one size or height,width in pixels, "
            "as in --config.image_size=384 or =384,256"
        )
    traced = tuple(config.profile_steps)
    if traced != (0, 0) and not (len(traced) == 2 and 1 <= traced[0] <= traced[1]):
        found["profile_steps"] = (
            f"profile_steps={traced}: give the first and the last step, as in "
            "--config.profile_steps=10,15, or 0,0 for none"
        )
    if 0 < config.max_loss_spike <= 1:
        found["max_loss_spike"] = (
            f"max_loss_spike={config.max_loss_spike}: a loss at its mean is not a "
            "spike; give more than 1, such as 3, or 0 for no limit"
        )
    if config.weight_decay_end is not None and not config.weight_decay:
        found["weight_decay_end"] = (
            f"weight_decay_end={config.weight_decay_end}, but weight_decay=0.0: the "
            "decay can only change from a value above 0"
        )
    try:
        re.compile(config.weight_decay_on)
    except re.error as error:
        found["weight_decay_on"] = (
            f"weight_decay_on={config.weight_decay_on!r} is not a regular expression: "
            f"{error}"
        )
    return found


def wrong_choices(config: Config, choices: Choices) -> dict[str, str]:
    """Finds keys whose value is not among their choices, with the reason."""
    found = {}
    for key, valid in choices.items():
        value = value_of(config, key)
        if value not in valid:
            listed = ", ".join(choice or '""' for choice in valid)
            hint = did_you_mean(value, valid)
            found[key] = f"{key}={value!r}: choose from {listed}{hint}"
    return found


def out_of_range(config: Config) -> dict[str, str]:
    """Finds keys whose value is outside their `RANGES`, with the range."""
    found = {}
    for key, (low, high) in RANGES.items():
        value = value_of(config, key)
        if value is None:
            continue
        if not math.isfinite(value):
            found[key] = f"{key}={value}: must be a finite number"
        elif not low <= value <= high:
            limit = f"from {low} to {high}" if high != math.inf else f"at least {low}"
            use = low if value < low else high
            found[key] = f"{key}={value}: must be {limit}; nearest is {use}"
    for axis, size in config.mesh.items():
        if size == 0:
            found[f"mesh.{axis}"] = (
                f"mesh.{axis}=0: must be -1 (all remaining devices) or at least 1"
            )
    return found


def check(found: Iterable[str]) -> None:
    """Raises one UserError that lists all problems, if there are any."""
    found = list(found)
    if found:
        lines = "\n".join("  - " + line.replace("\n", "\n    ") for line in found)
        raise UserError(f"the config has {len(found)} problem(s):\n{lines}")
