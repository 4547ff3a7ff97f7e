"""The visual prompts that a config asks for, and those that its weights have."""

import dataclasses

from vit_jax import config as config_lib
from vit_jax.config import Config
from vit_jax.errors import UserError
from vit_jax.models import Architecture, ViTOrMixer


def with_prompts(config: Config, architecture: ViTOrMixer) -> ViTOrMixer:
    """Adds the prompts that the config asks for to an architecture without any.

    Raises:
      ValueError: the model is not a Vision Transformer.
    """
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


def check_prompts(architecture: ViTOrMixer, config: Config, source: str) -> None:
    """Rejects prompts in pretrained weights that the run would not continue.

    Args:
      architecture: that of the weights.
      config: the run's.
      source: where the weights were read from.

    Raises:
      UserError: the config asks for other prompts, or for none.
    """
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
