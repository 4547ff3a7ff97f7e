"""Findings about an image: all that the command shows of it, as arrays."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.inspect.attention import MAP_HEAD, attention_maps, read_map
from vit_jax.inspect.blockwise import Blockwise
from vit_jax.inspect.distances import attention_distance, attention_entropy
from vit_jax.inspect.lens import logit_lens
from vit_jax.inspect.maps import MAPS
from vit_jax.inspect.targets import Target
from vit_jax.model import Model
from vit_jax.models import Architecture
from vit_jax.models.outputs import show

Image = Float[Array, "1 h w c"]


class Findings(NamedTuple):
    """Arrays that are found for one image; maps are on the grid of patches.

    Attributes:
      maps: name of a map → its values, for those that the model has.
      refused: name of a map → why the model does not have it.
      heads: attention of the last layer by head, or of a MAP head; None without any.
      layers: attention by layer, mean over heads; None without any.
      distances: mean attention distance in pixels by layer and head; None without any.
      entropies: mean entropy of attention in nats by layer and head; None without any.
      norms: norms of the patches' tokens after each block.
      lens: outputs of the logit lens after each block; None without classes.
    """

    maps: dict[str, Float[np.ndarray, "gh gw"]]
    refused: dict[str, str]
    heads: Float[np.ndarray, "heads gh gw"] | None
    layers: Float[np.ndarray, "depth gh gw"] | None
    distances: Float[np.ndarray, "depth heads"] | None
    entropies: Float[np.ndarray, "depth heads"] | None
    norms: Float[np.ndarray, "depth gh gw"]
    lens: Float[np.ndarray, "depth k"] | None

    def without_maps(self) -> "Findings":
        """Returns what is small enough to be kept of any number of images."""
        none = self.norms[:0]
        return self._replace(
            maps={}, refused={}, heads=None, layers=None, norms=none, lens=None
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all arrays by name, for a file."""
        found = {f"map_{name}": values for name, values in self.maps.items()}
        names = ("heads", "layers", "distances", "entropies", "lens")
        rest = {name: getattr(self, name) for name in names}
        found |= {name: values for name, values in rest.items() if values is not None}
        return found | {"norms": self.norms}


def look_at(
    model: Model,
    image: Image,
    names: Sequence[str] = tuple(MAPS),
    target: Target = None,
) -> Findings:
    """Computes everything that the page shows of one image.

    Args:
      model: any model; what it does not have is left out, or says why.
      image: one image in the model's value range.
      names: maps to compute, some of `MAPS`.
      target: what class-specific maps are of, see `targets.Target`.

    Raises:
      UserError: the target is invalid.
    """
    maps, refused = {}, {}
    for name in names:
        try:
            maps[name] = np.asarray(MAPS[name].compute(model, image, target)[0])
        except UserError as error:
            refused[name] = str(error)
    a = model.architecture
    heads = None
    if isinstance(a, Architecture):
        of = MAP_HEAD if a.pooling == "map" else -1
        heads = np.asarray(attention_maps(model, image, of)[0])
    norms, attention = zip(*_by_layer(model, image), strict=True)
    layers = distances = entropies = None
    if heads is not None:
        layers, distances, entropies = (
            np.stack(found) for found in zip(*attention, strict=True)
        )
    lens = None
    if a.num_classes:
        lens = np.asarray(show(model.outputs, logit_lens(model, image)[0]))
    norms = np.stack(norms)
    return Findings(maps, refused, heads, layers, distances, entropies, norms, lens)


def _by_layer(
    model: Model, image: Image
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Yields norms of the patches' tokens by layer, and what is known of attention.

    That is its map, the mean over heads, and distance and entropy of each head.
    """
    a, run = model.architecture, Blockwise(model)
    attends = isinstance(a, Architecture)
    prefix, count = a.num_prefix_tokens, a.grid[0] * a.grid[1]
    for x, found in run.forward(run.embed(image), ("attention",) if attends else ()):
        patches = np.asarray(x[0, prefix : prefix + count], np.float64)
        norms = np.linalg.norm(patches, axis=-1).reshape(a.grid)
        of_attention: tuple[np.ndarray, ...] = ()
        if attends:
            weights = np.asarray(found["attention"])
            equal = np.full((1, count), 1 / count)
            of_attention = (
                np.asarray(read_map(weights.mean(axis=1), a, equal)[0]),
                attention_distance(weights[0], a.grid, a.patch_size),
                attention_entropy(weights[0]),
            )
        yield norms, of_attention
