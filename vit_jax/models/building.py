"""Builds the module of an architecture, and the shapes of its parameters."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models.architecture import (
    Architecture,
    MixerArchitecture,
    ViTOrMixer,
)
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.patch_model import PatchModel
from vit_jax.models.vit import VisionTransformer

_MODULES: dict[type, type[PatchModel]] = {
    Architecture: VisionTransformer,
    MixerArchitecture: MlpMixer,
}


def build(architecture: ViTOrMixer, **how: Any) -> PatchModel:
    """The module of an architecture, whatever its kind.

    Args:
      architecture: the function.
      **how: other fields of the module. What only another kind of module has, such as
        an MLP-Mixer's attention, is left out.

    Raises:
      TypeError: a field that no module has.
    """
    module = _MODULES[type(architecture)]
    others = {name for other in _MODULES.values() for name in _names(other)}
    left_out = others - _names(module)
    return module(architecture, **{k: v for k, v in how.items() if k not in left_out})


def abstract_params(architecture: ViTOrMixer) -> dict[str, Any]:
    """Shapes and dtypes of an architecture's parameters, of which none is allocated.

    Returns:
      The nested dict that `init` gives, with `jax.ShapeDtypeStruct` leaves.
    """
    return jax.tree.map(lambda leaf: leaf, _abstract_params(architecture))


@functools.lru_cache(maxsize=16)
def _abstract_params(architecture: ViTOrMixer) -> dict[str, Any]:
    """Kept, since tracing takes a good part of a load; callers must not change it."""
    # All blocks are alike: one is traced.
    model = build(dataclasses.replace(architecture, depth=1))
    shape = (1, *architecture.image_size, architecture.channels)
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(shape))["params"]
    )
    block = params.pop("blocks_00")
    return params | {f"blocks_{i:02d}": block for i in range(architecture.depth)}


def _names(module: type[PatchModel]) -> set[str]:
    return set(module.__dataclass_fields__)
