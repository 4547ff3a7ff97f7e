"""A look inside trained models: arrays of attention, gradients and tokens.

Maps are on the grid of patches, [b, gh, gw]. None of them is an explanation or a
segmentation; each docstring has the formula, and says if a class cannot change the map.
"""

from vit_jax.inspect.attention import attention_maps, read_map
from vit_jax.inspect.cam import eigen_cam, grad_cam, hires_cam, normalized
from vit_jax.inspect.gradients import weights_and_gradients
from vit_jax.inspect.lens import logit_lens, patch_lens
from vit_jax.inspect.maps import (
    MAPS,
    Map,
    attention_rollout,
    gradient_rollout_maps,
    relevance_maps,
)
from vit_jax.inspect.rollout import (
    FUSIONS,
    fuse_heads,
    gradient_rollout,
    relevance,
    rollout,
)
from vit_jax.inspect.targets import Outputs, Target, away_from, cosine_to, length

__all__ = [
    "FUSIONS",
    "MAPS",
    "Map",
    "Outputs",
    "Target",
    "attention_maps",
    "attention_rollout",
    "away_from",
    "cosine_to",
    "eigen_cam",
    "fuse_heads",
    "grad_cam",
    "gradient_rollout",
    "gradient_rollout_maps",
    "hires_cam",
    "length",
    "logit_lens",
    "normalized",
    "patch_lens",
    "read_map",
    "relevance",
    "relevance_maps",
    "rollout",
    "weights_and_gradients",
]
