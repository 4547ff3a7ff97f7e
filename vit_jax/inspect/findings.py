"""Findings about an image: all that the command shows of it, as arrays."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.inspect.attention import MAP_HEAD, attention_maps, read_map
from vit_jax.inspect.blockwise import Blockwise
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
      norms: norms of the patches' tokens after each block.
      lens: outputs of the logit lens after each block; None without classes.
    """

    maps: dict[str, Float[np.ndarray, "gh gw"]]
    refused: dict[str, str]
    heads: Float[np.ndarray, "heads gh gw"] | None
    layers: Float[np.ndarray, "depth gh gw"] | None
    norms: Float[np.ndarray, "depth gh gw"]
    lens: Float[np.ndarray, "depth k"] | None

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all arrays by name, for a file."""
        found = {f"map_{name}": values for name, values in self.maps.items()}
        rest = {name: getattr(self, name) for name in ("heads", "layers", "lens")}
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
    heads = layers = None
    attends = isinstance(a, Architecture)
    if attends:
        of = MAP_HEAD if a.pooling == "map" else -1
        heads = np.asarray(attention_maps(model, image, of)[0])
    by_layer = [*_by_layer(model, image)]
    if attends:
        layers = np.stack([x for x, _ in by_layer if x is not None])
    lens = None
    if a.num_classes:
        lens = np.asarray(show(model.outputs, logit_lens(model, image)[0]))
    norms = np.stack([norms for _, norms in by_layer])
    return Findings(maps, refused, heads, layers, norms, lens)


def _by_layer(
    model: Model, image: Image
) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """Yields attention, mean over heads, and norms of the patches' tokens by layer."""
    a, run = model.architecture, Blockwise(model)
    attends = isinstance(a, Architecture)
    for x, found in run.forward(run.embed(image), ("attention",) if attends else ()):
        n = a.num_prefix_tokens + a.grid[0] * a.grid[1]
        patches = np.asarray(x[0, a.num_prefix_tokens : n], np.float64)
        norms = np.linalg.norm(patches, axis=-1).reshape(a.grid)
        attention = None
        if attends:
            shares = np.full((1, a.grid[0] * a.grid[1]), 1 / (a.grid[0] * a.grid[1]))
            weights = found["attention"].mean(axis=1)
            attention = np.asarray(read_map(weights, a, shares)[0])
        yield attention, norms
