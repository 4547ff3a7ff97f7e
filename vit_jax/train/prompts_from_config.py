"""The visual prompts that a config asks for, and those that its weights have."""

import dataclasses

from vit_jax import config as config_lib
from vit_jax.checkpoints.description import Description
from vit_jax.config import Config
from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.models.adapters import is_adapter
from vit_jax.optim.groups import Groups


def with_prompts(
    config: Config, architecture: ViTOrMixer, pretrained: Description | None
) -> ViTOrMixer:
    """Adds the prompts that the config asks for to an architecture without any.

    Args:
      config: the config, with sound values.
      architecture: the model's architecture.
      pretrained: description of the weights that it starts from. If these have prompts,
        the config has to ask for the same ones, which are then trained further.

    Raises:
      ValueError: the weights have other prompts, which cannot be merged into them, or
        the model is not a Vision Transformer.
    """
    count, deep = config.prompts.count, config.prompts.deep
    theirs = getattr(pretrained and pretrained.architecture, "prompts", 0)
    if theirs:
        assert pretrained and isinstance(pretrained.architecture, Architecture)
        their_deep = pretrained.architecture.prompts_deep
        if (count, deep) != (theirs, their_deep):
            flags = config_lib.as_flags(
                {"prompts.count": theirs, "prompts.deep": their_deep}
            )
            kind = "deep" if their_deep else "shallow"
            raise ValueError(
                f"prompts.count={count}, prompts.deep={deep}: the pretrained weights "
                f"have {theirs} {kind} prompts, which cannot be merged into them: pass "
                f"{flags} to train these on, or start from the weights that they were "
                "trained beside"
            )
    if not count:
        return architecture
    if not isinstance(architecture, Architecture):
        raise ValueError(
            f"prompts.count={count}: only a Vision Transformer can have prompts, and "
            "this model is an MLP-Mixer, which mixes a fixed number of tokens; leave "
            "it at 0"
        )
    return dataclasses.replace(architecture, prompts=count, prompts_deep=deep)


def check_trained(
    groups: Groups, architecture: ViTOrMixer, pretrained: Description | None
) -> None:
    """Rejects prompts that start at random and are not trained.

    Raises:
      ValueError: they are frozen.
    """
    count = getattr(architecture, "prompts", 0)
    if not count or getattr(pretrained and pretrained.architecture, "prompts", 0):
        return
    frozen = {
        group.frozen
        for path, group in groups.by_path.items()
        if is_adapter(path, ["prompts"])
    }
    if True in frozen:
        raise ValueError(
            f"prompts.count={count}: the prompts are frozen by the objective or by the "
            "config's groups, and would stay random; train them, or leave it at 0"
        )
