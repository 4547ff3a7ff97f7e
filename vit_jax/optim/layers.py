"""Layer-wise decay: learning rates that shrink from the head towards the input."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from vit_jax.optim.paths import paths_of

# Subtrees that come before the blocks.
_INPUT = {
    "trunk",
    "patch_embed",
    "pos_embed",
    "pos_embed_prefix",
    "cls",
    "distillation",
    "registers",
    "prompts",
}


def layer_factors(
    params: Any,
    decay: float,
    form: str = "mae",
    smallest: float = 0.0,
    *,
    norm_after_pool: bool = False,
) -> dict[str, float]:
    """Returns learning-rate factors by path, which shrink towards the input.

    The factor is decay^(n − layer), n being the last layer. Patches, tokens and
    positions are layer 0, block i is layer i + 1, and the heads and whatever an
    objective adds are layer depth + 1. The form says where the final norm is:

    - "mae": in the heads' layer, with the factor 1 (BEiT, arXiv:2106.08254; MAE's
      fine-tuning).
    - "timm": in the last block's, as in timm's `param_groups_layer_decay` since 0.8. A
      norm that follows pooling (timm's `fc_norm`) is in the heads' layer. Without any
      parameter there, the last block's layer is the last one.

    Args:
      params: the parameters or their shapes.
      decay: factor between adjacent layers; 1 = all factors are 1.
      form: a key of `FORMS`.
      smallest: lower limit of the factors, timm's `min_scale`.
      norm_after_pool: whether the final norm follows pooling.
    """
    paths = paths_of(params)
    depth = _depth(paths)
    layers = FORMS[form](paths, depth, norm_after_pool)
    last = max(layers.values(), default=0) if form == "timm" else depth + 1
    return {p: max(smallest, decay ** (last - layer)) for p, layer in layers.items()}


def untrained_blocks(paths: list[str], trained: Iterable[str]) -> int:
    """Counts the first blocks that get no gradient, because nothing up to them trains.

    Args:
      paths: paths of all parameters.
      trained: those that are trained.
    """
    layers = _mae_layers(paths, _depth(paths))
    return max(min((layers[path] for path in trained), default=0) - 1, 0)


def _depth(paths: Iterable[str]) -> int:
    numbers = (int(m[1]) for path in paths if (m := _BLOCK.match(path)))
    return max(numbers, default=-1) + 1


_BLOCK = re.compile(r"blocks_(\d+)/")


def _mae_layers(
    paths: list[str], depth: int, norm_after_pool: bool = False
) -> dict[str, int]:
    del norm_after_pool  # the norm is in the last layer wherever it is

    def layer(path: str) -> int:
        if match := _BLOCK.match(path):
            return int(match[1]) + 1
        return 0 if path.partition("/")[0] in _INPUT else depth + 1

    return {path: layer(path) for path in paths}


def _timm_layers(
    paths: list[str], depth: int, norm_after_pool: bool = False
) -> dict[str, int]:
    found = _mae_layers(paths, depth)
    if not norm_after_pool:
        found |= {path: depth for path in paths if path.startswith("norm/")}
    return found


# Form → (paths, number of blocks, whether the final norm follows pooling) → layers.
FORMS: dict[str, Callable[[list[str], int, bool], dict[str, int]]] = {
    "mae": _mae_layers,
    "timm": _timm_layers,
}
