"""An image's way through a model: shapes, parameters and FLOPs by stage.

`explain` shows the way as a table and as a drawing. `patch_embedding_as_matrix`,
`without_positions` and `shuffled` take its first steps apart.
"""

from vit_jax.walkthrough.embedding import (
    PatchEmbedding,
    patch_embedding_as_matrix,
)
from vit_jax.walkthrough.explaining import explain
from vit_jax.walkthrough.positions import shuffled, without_positions
from vit_jax.walkthrough.stages import Stage
from vit_jax.walkthrough.walkthroughs import Walkthrough

__all__ = [
    "PatchEmbedding",
    "Stage",
    "Walkthrough",
    "explain",
    "patch_embedding_as_matrix",
    "shuffled",
    "without_positions",
]
