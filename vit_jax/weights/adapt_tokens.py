"""Adaptation of a Vision Transformer's positions, pooling and final norm.

Each function changes the parameters of `source` in place towards the architecture
`target`, and returns the architecture that they now have, with a phrase for each
change. What they cannot change stays, for the caller to reject.
"""

import dataclasses
from typing import Any

import numpy as np

from vit_jax.models import Architecture
from vit_jax.models.flexible import fixed as without_flexible
from vit_jax.models.positions import resize, same_but_rounded, sincos2d
from vit_jax.words import times

Changed = tuple[Architecture, list[str]]


def fit_positions(
    adapted: dict[str, Any], source: Architecture, target: Architecture, method: str
) -> Changed:
    """Converts positions to the target's grid and kind; the function stays the same.

    Fixed sin-cos positions become the initial values of learned ones, on the grid that
    the weights were trained with. Learned ones are resized to the target's grid with a
    `method` of `positions.METHODS` (arXiv:2010.11929, section 3.2). Without a position
    of its own, the class token gets one of zeros, as in MAE's fine-tuning; a position
    that the target lacks is added to the token itself. Foreign files store fixed
    positions like learned ones: those of the target are no longer parameters.
    """
    done = []
    stored, source = source.position_grid, without_flexible(source)
    if source.posemb == "sincos2d" and target.posemb == "learned":
        adapted["pos_embed"] = sincos2d(
            source.grid, source.width, source.sincos_denominator
        )
        done.append("the fixed sin-cos positions become learned ones")
        source = dataclasses.replace(
            source, posemb="learned", sincos_denominator=target.sincos_denominator
        )
    elif _are_fixed(adapted.get("pos_embed"), source, target):
        del adapted["pos_embed"]
        done.append("the stored positions are the fixed ones, which are computed now")
        source = dataclasses.replace(
            source, posemb=target.posemb, sincos_denominator=target.sincos_denominator
        )
    both = "learned" == source.posemb == target.posemb and "pos_embed" in adapted
    if both and stored != target.position_grid:
        new = target.position_grid
        adapted["pos_embed"] = resize(adapted["pos_embed"], new, method)
        done.append(
            f"position embeddings resized from {times(stored)} to {times(new)} "
            f"({method})"
        )
    if source.class_token_position == target.class_token_position:
        return source, done
    if not (source.class_token and target.class_token):
        return source, done
    if target.class_token_position:
        _add_token_positions(adapted, source)
        done.append("the class token gets a position of zeros")
    else:
        _fold_token_positions(adapted, source)
        done.append("the position of the class token added to the token itself")
    changed = target.class_token_position
    return dataclasses.replace(source, class_token_position=changed), done


def fit_pooling(
    adapted: dict[str, Any], source: Architecture, target: Architecture
) -> Changed:
    """Changes what a new head reads: class token or mean, and the norm before it.

    A norm after pooling starts anew, because that of the weights was trained on single
    tokens. Do not call this if the head is kept, which would read something else.
    """
    done = []
    known = {
        "cls": "the class token",
        "gap": "the mean of the patches",
        "cls_gap": "the class token and the mean of the patches",
    }
    pooled = source.pooling, target.pooling
    tokens = source.class_token and target.class_token
    if pooled[0] != pooled[1] and set(pooled) <= set(known) and tokens:
        done.append(f"the head reads {known[pooled[1]]} instead of {known[pooled[0]]}")
        source = dataclasses.replace(source, pooling=target.pooling)
    norms = source.norm, target.norm
    if norms == ("before_pool", "after_pool") and source.pooling == target.pooling:
        old = adapted["norm"]
        adapted["norm"] = {
            "scale": np.ones(np.shape(old["scale"]), np.float32),
            "bias": np.zeros(np.shape(old["bias"]), np.float32),
        }
        done.append(
            "the final norm, trained before pooling, replaced by a new one after it"
        )
        source = dataclasses.replace(source, norm="after_pool")
    return source, done


def _are_fixed(positions: Any, source: Architecture, target: Architecture) -> bool:
    """Returns whether learned positions are the fixed ones of the target."""
    fixes = source.posemb == "learned" and target.posemb == "sincos2d"
    if not fixes or positions is None or source.width != target.width:
        return False
    fixed = sincos2d(source.grid, source.width, target.sincos_denominator)
    return same_but_rounded(positions, fixed)


def _add_token_positions(adapted: dict[str, Any], source: Architecture) -> None:
    count = 1 + int(source.distillation_token)
    rows = np.zeros((1, count, source.width), np.float32)
    if "pos_embed_prefix" in adapted:  # those of the registers
        rows = np.concatenate([rows, np.asarray(adapted["pos_embed_prefix"])], axis=1)
    adapted["pos_embed_prefix"] = rows


def _fold_token_positions(adapted: dict[str, Any], source: Architecture) -> None:
    rows = np.asarray(adapted.pop("pos_embed_prefix"))
    tokens = ["cls"] + ["distillation"] * source.distillation_token
    for number, name in enumerate(tokens):
        adapted[name] = np.asarray(adapted[name]) + rows[:, number : number + 1]
    if rows.shape[1] > len(tokens):
        adapted["pos_embed_prefix"] = rows[:, len(tokens) :]
