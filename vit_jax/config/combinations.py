"""Checks of config values that exclude each other, and the list of all problems."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from vit_jax.config.checks import Choices, wrong_values
from vit_jax.config.fine_tuning import wrong_fine_tuning
from vit_jax.config.flexible import wrong_flexible
from vit_jax.config.keys import ARCHITECTURE_KEYS, Config, default_config
from vit_jax.config.length import wrong_length
from vit_jax.config.values import is_default, value_of

# Losses for classes that exclude each other; vit_jax/models/outputs.py has them all.
EXCLUSIVE_LOSSES = ("softmax", "softmax_focal")


def problems(
    config: Config, choices: Choices, *, num_devices: int, other_meshes: str = ""
) -> list[str]:
    """Lists all problems with the values of a resolved config, one line each.

    Args:
      config: the config.
      choices: valid values of the keys that have only a few.
      num_devices: number of devices that a batch is sharded over.
      other_meshes: meshes over which the batch could be sharded, as text.
    """
    wrong = wrong_values(config, choices)
    found = [*wrong.values(), *wrong_flexible(config, wrong)]
    found += wrong_mixing(config) + wrong_average(config) + wrong_length(config)
    found += wrong_patience(config) + wrong_model(config) + wrong_rates(config)
    found += wrong_fine_tuning(config) + wrong_sharpness(config)
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
    """Lists conflicts among the keys of the mixing, one line each."""
    found, mixing = [], config.mixing
    if mixing.form == "big_vision" and mixing.cutmix_alpha > 0:
        found.append(
            f"mixing.cutmix_alpha={mixing.cutmix_alpha}: the form 'big_vision' has no "
            "CutMix; use mixing.form=timm, or set it to 0"
        )
    if mixing.form == "big_vision" and mixing.prob != 1:
        found.append(
            f"mixing.prob={mixing.prob}: the form 'big_vision' mixes every step; use "
            "mixing.form=timm, or set it to 1"
        )
    if mixing.binary_targets and config.loss in EXCLUSIVE_LOSSES:
        found.append(
            f"mixing.binary_targets with loss={config.loss}: several classes may be "
            "right, which only yes-or-no losses can learn; use loss=sigmoid"
        )
    return found


def wrong_rates(config: Config) -> list[str]:
    """Lists conflicts among the keys of the learning rate, one line each."""
    found, first, last = [], config.warmup_learning_rate, config.min_learning_rate
    if first and not config.warmup_steps:
        found.append(
            f"warmup_learning_rate={first} without warmup_steps has no effect; set "
            "warmup_steps"
        )
    if last and config.schedule != "cosine":
        found.append(
            f"min_learning_rate={last} has no effect with "
            f"schedule={config.schedule}; only the cosine ends there"
            + "; use end_learning_rate"
            * (config.schedule == "linear")
        )
    found += [
        f"{key}={config[key]} must not exceed learning_rate={config.learning_rate}"
        for key in ("warmup_learning_rate", "min_learning_rate")
        if config[key] and config[key] > config.learning_rate
    ]
    return found


def without_effect(config: Config, keys: Iterable[str], why: str) -> list[str]:
    """Lists keys, by dotted name, that are set although nothing reads them.

    Args:
      config: the config.
      keys: the keys that nothing reads.
      why: the reason, for the message.
    """
    default, found = default_config(), []
    for key in keys:
        if is_default(config, key):
            continue
        value, usual = value_of(config, key), value_of(default, key)
        if isinstance(value, ConfigDict):
            names = ", ".join(f"{key}.{name}" for name in value)
            found.append(f"{names} has no effect: {why}; leave it out")
        else:
            found.append(f"{key}={value} has no effect: {why}; leave it at {usual}")
    return found


def wrong_average(config: Config) -> list[str]:
    """Lists conflicts among the keys of the averaged weights."""
    found = []
    if config.ema_warmup and not config.ema_decay:
        found.append("ema_warmup without ema_decay has no effect; set ema_decay")
    decays = list(config.ema_decays)
    if decays and not config.ema_decay:
        found.append(
            f"ema_decays={tuple(decays)} without ema_decay: the first average is that "
            f"of ema_decay; set it, as in --config.ema_decay={decays[0]}, and leave it "
            "out of ema_decays"
        )
    every = [config.ema_decay, *decays]
    if repeated := sorted({str(x) for x in every if every.count(x) > 1}):
        found.append(
            f"ema_decay={config.ema_decay} and ema_decays={tuple(decays)} name "
            f"{', '.join(repeated)} more than once; give each decay once"
        )
    return found


def wrong_sharpness(config: Config) -> list[str]:
    """Lists conflicts among the keys of sharpness-aware minimisation."""
    sam = config.sam
    if not sam.rho:
        unread = [f"sam.{key}" for key in sam if key != "rho"]
        return without_effect(config, unread, "sam.rho is 0, so there is no SAM")
    found = []
    if sam.rho_min is not None and sam.rho_min > sam.rho:
        found.append(
            f"sam.rho_min={sam.rho_min} must not exceed sam.rho={sam.rho}: the "
            "distance falls from rho to rho_min"
        )
    if not sam.minimize_fp and not sam.alpha:
        found.append(
            "sam.minimize_fp=False with sam.alpha=0.0 trains with the ordinary "
            "gradient; set sam.alpha, or leave it at True for SAM"
        )
    return found


def wrong_model(config: Config) -> list[str]:
    """Lists keys of the model that have no effect beside its others, one line each."""
    found, model, default = [], config.model, default_config().model
    tokenless = model.class_token == "off" or "cls" not in model.pooling
    if model.class_token_position != "auto" and model.class_token != "on" and tokenless:
        found.append(
            f"model.class_token_position={model.class_token_position} without a class "
            "token has no effect; set model.class_token=on, or leave it at auto"
        )
    if model.norm == "after_pool" and model.pooling == "cls":
        found.append(
            "model.norm=after_pool with model.pooling=cls has no effect: the norm of "
            "one token is the same before and after; use model.pooling=gap, or leave "
            f"it at {default.norm}"
        )
    if model.stochastic_depth_form != "linear" and not model.stochastic_depth:
        found.append(
            f"model.stochastic_depth_form={model.stochastic_depth_form} without "
            "model.stochastic_depth has no effect; set model.stochastic_depth"
        )
    if model.head_std and config.pretrained and not config.reset_head:
        found.append(
            f"model.head_std={model.head_std} with reset_head=False has no effect: the "
            "pretrained head is kept; set one of them to its default"
        )
    return found


def wrong_patience(config: Config) -> list[str]:
    """Lists conflicts among the keys of early stopping."""
    if config.patience:
        if config.patience_metric or config.keep_best:
            return []
        return [
            f"patience={config.patience} without a metric to wait for: set "
            "patience_metric or keep_best, as in --config.patience_metric=top1"
        ]
    default = default_config()
    return [
        f"{key} without patience has no effect; set patience"
        for key in ("patience_metric", "patience_min_delta")
        if config[key] != default[key]
    ]


def _architecture_without_variant(config: Config) -> list[str]:
    if not config.pretrained:
        return [
            "model.variant and pretrained are both empty; name a variant "
            '(such as "B/16") or a pretrained checkpoint'
        ]
    default = default_config()
    return [
        f"model.{key}={config.model[key]!r}: with an empty model.variant the "
        "architecture is that of the pretrained file; set "
        f"--config.model.{key}={default.model[key]}, or name the variant"
        for key in ARCHITECTURE_KEYS
        # num_heads may be set, because not every file records it.
        if key != "num_heads" and config.model[key] != default.model[key]
    ]
