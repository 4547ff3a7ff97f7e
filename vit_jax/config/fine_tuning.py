"""Checks of the keys of fine-tuning that have no effect beside others."""

from vit_jax.config.keys import Config


def wrong_fine_tuning(config: Config) -> list[str]:
    """Lists conflicts among the keys of layers, phases and clipping, one line each."""
    found = []
    if config.layer_decay == 1:
        found += [
            f"{key}={config[key]} without layer_decay has no effect; set layer_decay"
            for key, default in (("layer_decay_form", "mae"), ("layer_decay_min", 0.0))
            if config[key] != default
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
