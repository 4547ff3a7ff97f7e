"""The adapters that a config asks for, and those that its weights have already."""

import contextlib
import dataclasses

from vit_jax import config as config_lib
from vit_jax.config import Config
from vit_jax.errors import UserError
from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.models.adapters import lora_of
from vit_jax.models.lora import LoraArchitecture, exceeds, parse_targets


def with_adapters(config: Config, architecture: ViTOrMixer) -> ViTOrMixer:
    """Adds the adapters that the config asks for to an architecture without any.

    Raises:
      ValueError: a layer is unknown, the rank exceeds its matrix, or the model is not a
        Vision Transformer.
    """
    return _with_prompts(config, _with_lora(config, architecture))


def check_continued(architecture: ViTOrMixer, config: Config, source: str) -> None:
    """Rejects adapters in pretrained weights that the run would not continue.

    LoRA adapters are merged if the config has none.

    Args:
      architecture: that of the weights.
      config: the run's.
      source: where the weights were read from.

    Raises:
      UserError: the config has others; says how to continue those of the weights.
    """
    _check_lora(architecture, config, source)
    _check_prompts(architecture, config, source)


def _lora(config: Config) -> LoraArchitecture:
    """Reads the LoRA adapters of a config that has some.

    Raises:
      ValueError: a layer is unknown.
    """
    lora = config.lora
    try:
        targets = parse_targets(lora.targets)
    except ValueError as error:
        raise ValueError(f"lora.targets={lora.targets!r}: {error}") from error
    alpha = float(lora.alpha or lora.rank)
    return LoraArchitecture(lora.rank, alpha, targets, lora.rank_stabilized)


def _with_lora(config: Config, architecture: ViTOrMixer) -> ViTOrMixer:
    rank = config.lora.rank
    if not rank:
        return architecture
    if not isinstance(architecture, Architecture):
        raise ValueError(
            f"lora.rank={rank}: only a Vision Transformer can have adapters, and "
            "this model is an MLP-Mixer; leave it at 0"
        )
    lora = _lora(config)
    sizes = architecture.width, architecture.mlp_dim
    if reason := exceeds(rank, lora.targets, *sizes):
        raise ValueError(f"lora.rank={rank} {reason}")
    return dataclasses.replace(
        architecture,
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
        lora_targets=lora.targets,
        lora_rank_stabilized=lora.rank_stabilized,
    )


def _with_prompts(config: Config, architecture: ViTOrMixer) -> ViTOrMixer:
    count = config.prompts.count
    if not count:
        return architecture
    if not isinstance(architecture, Architecture):
        raise ValueError(
            f"prompts.count={count}: only a Vision Transformer can have prompts, and "
            "this model is an MLP-Mixer, which mixes a fixed number of tokens; leave "
            "it at 0"
        )
    deep = config.prompts.deep
    return dataclasses.replace(architecture, prompts=count, prompts_deep=deep)


def _check_lora(architecture: ViTOrMixer, config: Config, source: str) -> None:
    theirs = lora_of(architecture)
    if not config.lora.rank or theirs is None:
        return
    ours = theirs
    with contextlib.suppress(ValueError):  # which is said elsewhere
        ours = _lora(config)
    if ours == theirs:
        return
    flags = config_lib.as_flags(
        {
            "lora.rank": theirs.rank,
            "lora.alpha": theirs.alpha,
            "lora.targets": ",".join(theirs.targets),
            "lora.rank_stabilized": theirs.rank_stabilized,
        }
    )
    raise UserError(
        f"the pretrained weights {source} already have LoRA adapters, with other "
        f"settings than config.lora. To train these on, pass {flags}; to train new "
        "ones beside the merged model, merge them first: python -m vit_jax.convert "
        f"{source} MERGED.safetensors --to=vit_jax --merge"
    )


def _check_prompts(architecture: ViTOrMixer, config: Config, source: str) -> None:
    if not isinstance(architecture, Architecture) or not architecture.prompts:
        return
    count, deep = architecture.prompts, architecture.prompts_deep
    if (config.prompts.count, config.prompts.deep) == (count, deep):
        return
    flags = config_lib.as_flags({"prompts.count": count, "prompts.deep": deep})
    raise UserError(
        f"the pretrained weights {source} have {count} {'deep' if deep else 'shallow'} "
        "prompts, which cannot be merged into them, but the config has "
        f"prompts.count={config.prompts.count} and prompts.deep={config.prompts.deep}: "
        f"pass {flags} to train them on, or start from the weights that they were "
        "trained beside"
    )
