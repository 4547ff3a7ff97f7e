"""Makes the model that a config names, or that a pretrained file holds."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax import config as config_lib
from vit_jax.checkpoints.description import Description
from vit_jax.config import Config
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import (
    Architecture,
    PatchModel,
    ViTOrMixer,
    architecture_from_variant,
    build,
)
from vit_jax.models.adapters import without_adapters
from vit_jax.models.attention.formulations import candidates, why_not_cudnn
from vit_jax.models.flexible import fixed, why_not_flexible
from vit_jax.train.adapters_from_config import with_adapters
from vit_jax.words import pair

# Value of a key → value of the architecture's field; None = what follows from the
# other fields.
SWITCHES: dict[str, bool | None] = {"auto": None, "on": True, "off": False}
_SWITCHED = ("class_token", "class_token_position")


def make_architecture(
    config: Config, num_classes: int, pretrained: Description | None
) -> ViTOrMixer:
    """Makes the architecture from variant and config, or from the pretrained file.

    Adapters are those of the config, whichever the file has.

    Raises:
      ValueError: the config has keys or values that this architecture lacks.
    """
    architecture = _without_adapters(config, num_classes, pretrained)
    return with_adapters(config, architecture)


def _without_adapters(
    config: Config, num_classes: int, pretrained: Description | None
) -> ViTOrMixer:
    model = config.model
    common = {
        "image_size": config_lib.image_size(config),
        "num_classes": num_classes,
    }
    if model.variant:
        architecture = architecture_from_variant(model.variant, **common)
    else:
        assert pretrained is not None  # `problems` has asked for one
        architecture = dataclasses.replace(
            without_adapters(pretrained.architecture), **common
        )
        heads = getattr(architecture, "num_heads", 0)
        if model.num_heads and model.num_heads != heads:
            raise ValueError(
                f"model.num_heads={model.num_heads}, but the pretrained file has "
                f"{heads}; do not set this key"
            )
    if model.head_std and not num_classes:
        raise ValueError(
            f"model.head_std={model.head_std} has no effect: with objective="
            f"{config.objective} the model has no head; leave it at 0"
        )
    names = {field.name for field in dataclasses.fields(architecture)}
    _refuse_keys_of_other_kinds(config, architecture, names)
    if model.variant:
        given = {k: model[k] for k in config_lib.ARCHITECTURE_KEYS if k in names}
        given = {k: v for k, v in given.items() if v or k not in config_lib.SIZE_KEYS}
        for key in given.keys() & _SWITCHED:
            if (value := SWITCHES[given.pop(key)]) is not None:
                given[key] = value
        if "layer_scale" in given:
            given["layer_scale"] = model.layer_scale > 0
        architecture = architecture_from_variant(model.variant, **common, **given)
    elif not config.reset_head:
        if model.pre_logits:
            raise ValueError(
                f"model.pre_logits={model.pre_logits} makes a new layer before the "
                "head, but reset_head=False keeps the pretrained head; set one of them "
                "to its default"
            )
        return _flexible(config, architecture)
    architecture = _flexible(config, architecture)
    if "pre_logits" not in names:
        return architecture
    width = architecture.width if model.pre_logits == -1 else model.pre_logits
    return dataclasses.replace(architecture, pre_logits=width)


def _flexible(config: Config, architecture: ViTOrMixer) -> ViTOrMixer:
    """Stores patch embedding and positions for flexible patch sizes, if there are any.

    Raises:
      ValueError: this kind of model has a single patch size.
    """
    architecture, flexible = fixed(architecture), config.flexible
    if not flexible.patch_sizes:
        return architecture
    if reason := why_not_flexible(architecture):
        raise ValueError(f"flexible.patch_sizes={flexible.patch_sizes}: {reason}")
    stored: dict[str, Any] = {"flexible_kernel": pair(flexible.kernel)}
    if getattr(architecture, "posemb", "") == "learned":
        stored["flexible_grid"] = pair(flexible.grid)
        stored["flexible_resize"] = flexible.posemb_resize
    return dataclasses.replace(architecture, **stored)


def make_preprocessing(
    config: Config, size: tuple[int, int], pretrained: Description | None
) -> Preprocessing:
    """Makes the preprocessing, in the value range of the weights or the config."""
    values = Preprocessing(size)
    if pretrained:
        values = pretrained.preprocessing
    elif config.normalization:
        values = values.normalized_by(config.normalization)
    channels = config.model.channels
    if not config.model.variant and pretrained:
        channels = pretrained.architecture.channels
    return dataclasses.replace(
        values.for_images(size, channels),
        eval_transform=config.augment.eval,
        white_level=config.data.white_level,  # a fact of the images, not the weights
    )


def check_normalization(config: Config, pretrained: Description | None) -> None:
    """Rejects a normalisation that is not that of the pretrained weights.

    Raises:
      ValueError: says what the weights expect.
    """
    if not pretrained or not config.normalization:
        return
    theirs = pretrained.preprocessing
    ours = theirs.normalized_by(config.normalization)
    if not np.allclose([*ours.mean, *ours.std], [*theirs.mean, *theirs.std], atol=1e-4):
        raise ValueError(
            f"normalization={config.normalization}, but the pretrained weights expect "
            f"values less {_numbers(theirs.mean)} over {_numbers(theirs.std)}; leave "
            "it empty to use theirs"
        )


def _numbers(values: tuple[float, ...]) -> str:
    some = values[:1] if len(set(values)) == 1 else values
    return ", ".join(f"{value:.4g}" for value in some)


def resolve_attention(config: Config, architecture: ViTOrMixer, mesh: Mesh) -> str:
    """Returns the formulation that the config names; for `auto`, the most promising.

    Raises:
      ValueError: it cannot run on these devices.
    """
    name, dtype = config.model.attention, _compute_dtype(config.compute_dtype, mesh)
    found = attention_candidates(architecture, dtype, mesh)
    if name == "auto":
        return found[0] if found else name
    if name == "cudnn" and isinstance(architecture, Architecture):
        channels = architecture.width // architecture.num_heads
        if reason := why_not_cudnn(mesh.devices.flat[0].platform, channels, dtype):
            raise ValueError(f"model.attention='cudnn': {reason}; use auto")
    return name


def attention_candidates(
    architecture: ViTOrMixer, dtype: Any, mesh: Mesh
) -> tuple[str, ...]:
    """Lists the candidates for `model.attention=auto`, the most promising first.

    There are none for a model without attention, such as an MLP-Mixer.
    """
    if not isinstance(architecture, Architecture):
        return ()
    device = mesh.devices.flat[0]
    return candidates(
        device.platform,
        device.device_kind,
        tokens=architecture.num_tokens,
        heads=max(architecture.num_heads // mesh.shape.get("tensor", 1), 1),
        channels=architecture.width // architecture.num_heads,
        dtype=dtype,
    )


def make_model(
    config: Config, architecture: ViTOrMixer, mesh: Mesh, attention: str
) -> PatchModel:
    """Makes the module, with a formulation of attention that is not `auto`."""
    return build(
        architecture,
        dtype=_compute_dtype(config.compute_dtype, mesh),
        attention=attention,
        scan=config.model.scan,
        remat=config.model.remat,
        dropout_rate=config.model.dropout_rate,
        stochastic_depth=config.model.stochastic_depth,
        stochastic_depth_form=config.model.stochastic_depth_form,
        head_bias=config.model.head_bias,
        head_std=config.model.head_std,
        layer_scale_init=config.model.layer_scale or 1.0,
        lora_dropout=config.lora.dropout,
        prompt_dropout=config.prompts.dropout,
    )


def _compute_dtype(name: str, mesh: Mesh) -> Any:
    """Resolves `auto` by the devices of the mesh, not those of this process."""
    if name == "auto":
        name = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def _refuse_keys_of_other_kinds(
    config: Config, architecture: ViTOrMixer, names: set[str]
) -> None:
    """Rejects config keys that this kind of model does not support."""
    names = names | set(type(build(architecture)).__dataclass_fields__)
    model, default = config.model, config_lib.default_config().model
    others = {key for key in model if key != "variant" and key not in names}
    wrong = [
        f"model.{key}={model[key]!r} (leave it at {default[key]!r})"
        for key in sorted(others)
        if model[key] != default[key]
    ]
    if model.remat == "attention" and "attention" not in names:
        wrong.append("model.remat='attention' (use 'dots' or 'full')")
    if wrong:
        kind = type(build(architecture)).__name__
        raise ValueError(f"{kind} does not support {', '.join(wrong)}")
