"""Construction of an architecture's module, and of its parameters' shapes."""

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
    """Builds the module of an architecture of any kind.

    Args:
      architecture: the function.
      **how: other fields of the module. Fields that only another kind of module has,
        such as `attention` for an MLP-Mixer, are ignored.

    Raises:
      TypeError: no module has such a field.
    """
    module = _MODULES[type(architecture)]
    others = {name for other in _MODULES.values() for name in _names(other)}
    left_out = others - _names(module)
    return module(architecture, **{k: v for k, v in how.items() if k not in left_out})


def abstract_params(architecture: ViTOrMixer) -> dict[str, Any]:
    """Returns the shapes and dtypes of an architecture's parameters; allocates none.

    Returns:
      The nested dict that `init` returns, with `jax.ShapeDtypeStruct` leaves.
    """
    return jax.tree.map(lambda leaf: leaf, _abstract_params(architecture))


@functools.lru_cache(maxsize=16)
def _abstract_params(architecture: ViTOrMixer) -> dict[str, Any]:
    """Computes `abstract_params`; callers must not change the cached result.

    It is cached because tracing takes a good part of the time of a load.
    """
    # All blocks are alike, so tracing one is enough.
    model = build(dataclasses.replace(architecture, depth=1))
    shape = (1, *architecture.image_size, architecture.channels)
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(shape))["params"]
    )
    block = params.pop("blocks_00")
    return params | {f"blocks_{i:02d}": block for i in range(architecture.depth)}


def _names(module: type[PatchModel]) -> set[str]:
    return set(module.__dataclass_fields__)
