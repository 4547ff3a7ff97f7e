"""The name of the work directory of a run that was started without --workdir.

The name has to be the same whenever the same command is run again, even by a later
version with more keys: otherwise the run silently starts from its first step.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from vit_jax.checkpoints.workdir import is_among, locate
from vit_jax.config import FREE_TO_CHANGE, Config, default_config, flat_keys, to_plain
from vit_jax.config.checks import value_of

# Version 0.1 hashed every key it had. These are its keys, and the values that it
# substituted for keys that were free to change. A record of the past: never edit it.
_KEYS_OF_0_1 = """
    name seed dataset data_dir train_split eval_split image_size batch_size
    eval_batch_size bad_images eval_bad_images max_bad_images sampling loader_threads
    loader_processes augment.train augment.eval augment.repeats mixing.form
    mixing.mixup_alpha mixing.cutmix_alpha mixing.prob mixing.switch_prob
    mixing.binary_targets mixing.erasing_prob mixing.erasing_mode mixing.erasing_count
    model.variant model.width model.depth model.mlp_dim model.num_heads
    model.tokens_mlp_dim model.channels model.pooling model.posemb model.registers
    model.pre_logits model.gelu model.layernorm_epsilon model.layer_scale
    model.head_bias model.dropout_rate model.stochastic_depth model.attention model.scan
    model.remat pretrained reset_head posemb_resize loss label_smoothing optimizer b1 b2
    momentum momentum_dtype offload_optimizer weight_decay weight_decay_on
    grad_clip_norm ema_decay ema_warmup bad_update max_loss_spike accum_steps
    learning_rate schedule warmup_steps end_learning_rate rsqrt_timescale cooldown_steps
    total_steps total_epochs mesh.data mesh.fsdp mesh.tensor compute_dtype allow_cpu
    log_every eval_every checkpoint_every keep_checkpoints keep_best profile_steps
    wandb_project per_class
"""
_FREE_IN_0_1 = {
    "data_dir": "",
    "eval_batch_size": 512,
    "loader_threads": 8,
    "loader_processes": 0,
    "model.attention": "auto",
    "model.remat": "none",
    "offload_optimizer": False,
    "accum_steps": 1,
    "mesh.data": -1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
    "allow_cpu": False,
    "log_every": 50,
    "eval_every": 0,
    "checkpoint_every": 1000,
    "keep_checkpoints": 2,
    "profile_steps": [0, 0],
    "wandb_project": "",
    "per_class": False,
}


def default_workdir(config: Config) -> str:
    """Finds or names the directory of the run that this config describes.

    Args:
      config: a complete config, not yet resolved.

    Returns:
      A relative path. If an earlier version named the run's directory differently and
      that directory exists, it is that one. Otherwise the name depends only on the keys
      that define a run and are not at their defaults.
    """
    config = config.copy_and_resolve_references()
    name = _path(config, _digest(_chosen(config)))
    if not locate(name).exists():
        for earlier in _earlier_names(config):
            if locate(earlier).exists():
                return earlier
    return name


def _chosen(config: Config) -> dict[str, Any]:
    """Returns the keys that define this run, without those at their defaults."""
    keys = [key for key in flat_keys(config) if not is_among(key, FREE_TO_CHANGE)]
    values = _plain(config, keys)
    default = default_config()
    defaults = _plain(default, flat_keys(default))
    return {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}


def _earlier_names(config: Config) -> list[str]:
    """Lists the names that earlier versions with these keys gave to the directory."""
    if not _chosen(config).keys() <= set(_KEYS_OF_0_1.split()):
        return []
    return [_path(config, _digest_of_0_1(config))]


def _digest_of_0_1(config: Config) -> str:
    nested: dict[str, Any] = {}
    for key, value in (_plain(config, _KEYS_OF_0_1.split()) | _FREE_IN_0_1).items():
        *sections, last = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return _digest(nested)


def _plain(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """Returns keys by dotted name, with values converted by JSON."""
    plain = to_plain(config)
    return {key: value_of(plain, key) for key in keys}


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _path(config: Config, digest: str) -> str:
    dataset = re.sub(r"[^\w.-]+", "-", config.dataset).strip("-")[-40:]
    return f"runs/{config.name}-{dataset}-{digest}"
