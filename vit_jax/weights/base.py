"""The base of an adapter: the pretrained weights whose parameters stay frozen.

A run with adapters saves only what it trains, and a record of its base: where it was
read from, and a checksum of its parameters. This module makes the model whole again.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.workdir import CHECKPOINTS
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import ViTOrMixer, abstract_params
from vit_jax.models.adapters import (
    FIELDS,
    adapters_of,
    is_head,
    merged_lora,
    without_adapters,
)
from vit_jax.trees import leaves_by_path, overlaid
from vit_jax.weights.adapt import adapt, even_normalization
from vit_jax.weights.contents import Weights, split_params

logger = logging.getLogger(__name__)


def checksum(params: Mapping[str, Any], architecture: ViTOrMixer) -> str:
    """Computes the SHA-256 of a model's parameters, other than those of its head.

    It is the same for every format, place and machine that the weights come from.
    """
    own = abstract_params(architecture)
    digest = hashlib.sha256()
    add_to_digest(
        digest,
        {
            path: x
            for path, x in leaves_by_path(params).items()
            if path.partition("/")[0] in own and not is_head(path)
        },
    )
    return digest.hexdigest()


def add_to_digest(digest: Any, arrays: Mapping[str, Any]) -> None:
    """Adds arrays to a digest of hashlib, as float32 and in the order of their names.

    Args:
      digest: the digest.
      arrays: "/"-joined path → array.
    """
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name], "<f4")
        digest.update(f"{name} {values.shape}".encode())
        digest.update(values.data)


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
    description: Description, trained: Mapping[str, Any], base: Weights, source: str
) -> dict[str, Any]:
    """Adds the frozen parameters to those that a checkpoint holds.

    Args:
      description: that of the checkpoint.
      trained: the parameters that it holds.
      base: the weights that the others were trained beside.
      source: where these were read from.

    Raises:
      UserError: the weights are not those of the record.
    """
    about = base.description
    found = record_of(source, about, base.params)
    check_same(description.base, found)
    return overlaid(trained, fitted_to(description, base))


def fitted_to(description: Description, base: Weights) -> dict[str, Any]:
    """Adapts a base to the model that was trained beside it, without its adapters.

    Args:
      description: that of the model.
      base: the weights that it was trained beside.
    """
    own, _ = split_params(base)
    about = base.description
    return fitted(
        own,
        about.architecture,
        description.architecture,
        about.preprocessing,
        keep_head=False,
        posemb_resize=description.config["posemb_resize"],
        quiet=True,
    )


def _lasting(source: str, step: int) -> str:
    """Names a source by its absolute path, and a checkpoint by its step."""
    path, entry, name = source.partition("#")
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        return source
    path = os.path.abspath(path)
    checkpoint = os.path.join(path, CHECKPOINTS, str(step))
    return checkpoint if os.path.isdir(checkpoint) else f"{path}{entry}{name}"
