"""Checks of the keys of fine-tuning: adapters, layers, phases and clipping."""

from vit_jax.config.keys import Config
from vit_jax.config.values import is_default


def wrong_fine_tuning(config: Config) -> list[str]:
    """Lists conflicts among the keys of fine-tuning, one line each."""
    found = _wrong_adapters(config, "lora", "rank", 8)
    found += _wrong_adapters(config, "prompts", "count", 10)
    if config.save_frozen == "no" and not config.pretrained:
        found.append(
            "save_frozen=no without pretrained weights: the frozen parameters could "
            "not be read again; set --config.pretrained, or leave it at auto"
        )
    if config.layer_decay == 1:
        found += [
            f"{key}={config[key]} without layer_decay has no effect; set layer_decay"
            for key in ("layer_decay_form", "layer_decay_min")
            if not is_default(config, key)
        ]
    elif config.layer_decay_min == 1:
        found.append(
            f"layer_decay_min=1.0 with layer_decay={config.layer_decay} makes all "
            "factors equal; give less, or set layer_decay to 1"
        )
    length, alone = config.total_steps, config.head_only_steps
    if length is not None and alone >= length > 0:
        found.append(
            f"head_only_steps={alone} leaves none of total_steps={length} for the "
            "backbone; use train_only=head, or a smaller number"
        )
    if config.grad_clip_adaptive and config.grad_clip_parameter_norm:
        found.append(
            f"grad_clip_adaptive={config.grad_clip_adaptive} and "
            f"grad_clip_parameter_norm={config.grad_clip_parameter_norm} both limit "
            "each parameter's gradient; set one of them to 0"
        )
    return found


def _wrong_adapters(config: Config, section: str, size: str, usual: int) -> list[str]:
    """Lists keys of one kind of adapter that have no effect, or lack the weights.

    Args:
      config: the config.
      section: the kind's section.
      size: the section's key that says whether there are adapters.
      usual: a usual value of it, for messages.
    """
    keys, key = config[section], f"{section}.{size}"
    if not keys[size]:
        given = [
            f"{section}.{name}={keys[name]}"
            for name in keys
            if not is_default(config, f"{section}.{name}")
        ]
        if not given:
            return []
        return [
            f"{', '.join(given)} without {key} has no effect; set {key}, as in "
            f"--config.{key}={usual}"
        ]
    if keys[size] > 0 and not config.pretrained:
        return [
            f"{key}={keys[size]} without pretrained weights: all but the adapters and "
            "the head would stay random; set --config.pretrained"
        ]
    return []
