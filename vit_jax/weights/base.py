"""The base of an adapter: the pretrained weights whose parameters stay frozen.

A run with adapters saves only what it trains, and a record of its base: where it was
read from, and a checksum of its parameters. This module makes the model whole again.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.workdir import CHECKPOINTS
from vit_jax.config import Config, as_flags
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import ViTOrMixer, abstract_params
from vit_jax.models.adapters import (
    FIELDS,
    adapters_of,
    is_head,
    lora_of,
    merged_lora,
    overlaid,
    without_adapters,
)
from vit_jax.models.lora import LoraArchitecture, parse_targets
from vit_jax.weights.adapt import adapt, even_normalization

logger = logging.getLogger(__name__)


def checksum(params: Mapping[str, Any], architecture: ViTOrMixer) -> str:
    """Computes the SHA-256 of a model's parameters, other than those of its head.

    It is the same for every format, place and machine that the weights come from.
    """
    own = abstract_params(architecture)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree.leaves_with_path(params)
    }
    digest = hashlib.sha256()
    for name in sorted(leaves):
        if name.partition("/")[0] in own and not is_head(name):
            values = np.ascontiguousarray(leaves[name], "<f4")
            digest.update(f"{name} {values.shape}".encode())
            digest.update(values.data)
    return digest.hexdigest()


def record_of(source: str, description: Description, params: Any) -> dict[str, str]:
    """Returns the record of a base, for the description of what is trained beside it.

    Args:
      source: where it was read from, as given.
      description: the base's.
      params: the base's, as read.
    """
    architecture = description.architecture
    return {
        "source": _lasting(source, description.step),
        "checksum": checksum(params, architecture),
    }


def check_same(record: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Rejects weights that are not the base of an adapter.

    Args:
      record: that of the adapter.
      found: that of the weights.

    Raises:
      UserError: says which checksum was found and which was expected.
    """
    if record["checksum"] != found["checksum"]:
        raise UserError(
            f"the adapters were trained beside other weights: {found['source']} has "
            f"the SHA-256 {found['checksum'][:12]}…, but their base, read from "
            f"{record['source']}, had {record['checksum'][:12]}…; pass that base"
        )


def check_adapters(architecture: ViTOrMixer, config: Config, source: str) -> None:
    """Rejects LoRA adapters in pretrained weights that a run's own would not continue.

    Without any in the config, those of the weights are merged.

    Args:
      architecture: that of the weights.
      config: the run's.
      source: where the weights were read from.

    Raises:
      UserError: the config has other adapters; says how to continue those of the
        weights, and how to merge them.
    """
    theirs = lora_of(architecture)
    if not config.lora.rank or theirs is None:
        return
    ours = theirs
    with contextlib.suppress(ValueError):  # which is said elsewhere
        ours = LoraArchitecture(
            config.lora.rank,
            float(config.lora.alpha or config.lora.rank),
            parse_targets(config.lora.targets),
            config.lora.rank_stabilized,
        )
    if ours == theirs:
        return
    flags = as_flags(
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


def fitted(
    base: Mapping[str, Any],
    source: ViTOrMixer,
    target: ViTOrMixer,
    preprocessing: Preprocessing,
    **how: Any,
) -> dict[str, Any]:
    """Adapts pretrained parameters to an architecture that may add adapters.

    Adapters that only the target has are left out of the result. LoRA adapters that
    only the source has are merged.

    Args:
      base: the parameters.
      source: their architecture.
      target: the architecture of the model.
      preprocessing: that of the parameters.
      **how: options of `adapt`.

    Raises:
      UserError: see `adapt`.
    """
    base = dict(base)
    if "lora" not in adapters_of(target) and "lora" in adapters_of(source):
        base, source = merged_lora(base, source)
        if not how.get("quiet"):
            logger.warning("pretrained weights: their LoRA adapters are merged")
    if source.channels != target.channels:
        base, _ = even_normalization(base, source, preprocessing)
    new = [kind for kind in FIELDS if kind not in adapters_of(source)]
    return adapt(base, source, without_adapters(target, new), **how)


def completed(
    description: Description, trained: Mapping[str, Any], base: Any, source: str
) -> dict[str, Any]:
    """Adds the frozen parameters to those that a checkpoint holds.

    Args:
      description: that of the checkpoint.
      trained: the parameters that it holds.
      base: weights, as `load_weights` returns them.
      source: where these were read from.

    Raises:
      UserError: the weights are not those of the record.
    """
    about = base.description
    found = record_of(source, about, base.params)
    check_same(description.base, found)
    names = abstract_params(about.architecture)
    own = {name: x for name, x in base.params.items() if name in names}
    frozen = fitted(
        own,
        about.architecture,
        description.architecture,
        about.preprocessing,
        keep_head=False,
        posemb_resize=description.config["posemb_resize"],
        quiet=True,
    )
    return overlaid(trained, frozen)


def _lasting(source: str, step: int) -> str:
    """Names a source by its absolute path, and a checkpoint by its step."""
    path, entry, name = source.partition("#")
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        return source
    path = os.path.abspath(path)
    checkpoint = os.path.join(path, CHECKPOINTS, str(step))
    return checkpoint if os.path.isdir(checkpoint) else f"{path}{entry}{name}"
