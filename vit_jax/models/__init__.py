"""The models: Flax modules and array functions, which import no other room."""

from vit_jax.models.architecture import (
    Architecture,
    MixerArchitecture,
    ViTOrMixer,
    architecture_from_dict,
    architecture_from_variant,
)
from vit_jax.models.building import abstract_params, build
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.patch_model import PatchModel
from vit_jax.models.placement import Placement
from vit_jax.models.projection import ProjectionHead
from vit_jax.models.variants import HYBRIDS, MIXERS, VARIANTS, parse_variant
from vit_jax.models.vit import VisionTransformer

__all__ = [
    "HYBRIDS",
    "MIXERS",
    "VARIANTS",
    "Architecture",
    "MixerArchitecture",
    "MlpMixer",
    "PatchModel",
    "Placement",
    "ProjectionHead",
    "ViTOrMixer",
    "VisionTransformer",
    "abstract_params",
    "architecture_from_dict",
    "architecture_from_variant",
    "build",
    "parse_variant",
]
