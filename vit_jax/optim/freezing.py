"""Frozen parameters, and those that wait while the head is warmed up.

`config.freeze` and `config.train_only` hold patterns joined by ",". A pattern is a
regular expression for the whole path of a parameter, or the name of one of the `SETS`.
Frozen are the parameters that `freeze` matches, or all that `train_only` does not. With
adapters, an empty `train_only` means these, the head and what the objective adds.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from vit_jax.config import Config
from vit_jax.models.adapters import ADAPTERS, HEADS
from vit_jax.optim.paths import like_none, matching, split_patterns
from vit_jax.words import shortened

_BIASES = r"(.*/)?bias"
# What a new task needs anew. A map head is not part of it: it pools, is pretrained like
# the blocks, and the head that reads its result is another layer.
_HEAD = HEADS
_ADAPTERS = "|".join(ADAPTERS.values())

# Name → regular expression for the whole paths of its parameters.
SETS = {
    "head": _HEAD,
    "backbone": (
        r"(trunk|patch_embed|blocks_\d+|norm|map_head)/.*"
        r"|pos_embed|pos_embed_prefix|cls|distillation|registers"
        rf"|{_ADAPTERS}"
    ),
    "blocks": r"blocks_\d+/.*",
    "attention": r"blocks_\d+/attention/.*",
    "mlp": r"blocks_\d+/(mlp|tokens_mlp)/.*",
    "biases": _BIASES,
    "adapters": _ADAPTERS,
    "bitfit": f"{_BIASES}|{_HEAD}",  # arXiv:2106.10199: the biases and the new head
    "norms": r"(.*/)?(norm|gn)\w*/.*",
    "layer_scale": r"blocks_\d+/layer_scale\d",
    "patches": r"patch_embed/.*",
    "trunk": r"trunk/.*",
    "positions": r"pos_embed|pos_embed_prefix",
    "tokens": r"cls|distillation|registers",
    "map_head": r"map_head/.*",
}
_KEYS = ("freeze", "train_only")


class Freezing(NamedTuple):
    """The effect of `config.freeze` and `config.train_only`.

    Attributes:
      frozen: paths that they freeze.
      named: paths that `train_only` names.
      by: the keys that are set, for messages.
      problems: why they cannot be used, one line each.
    """

    frozen: frozenset[str]
    named: frozenset[str]
    by: str
    problems: list[str]


def read_freezing(
    config: Config,
    paths: Sequence[str],
    fixed: Collection[str] = (),
    beside: Collection[str] = (),
) -> Freezing:
    """Finds the parameters that the config freezes, apart from rows of `groups`.

    Args:
      config: a resolved config.
      paths: paths of all parameters.
      fixed: those that the objective freezes.
      beside: those that rest beside adapters unless `train_only` names them.
    """
    problems: list[str] = []
    rests = () if config.train_only else beside
    freeze, only = (
        _selected(key, config[key], paths, fixed, rests, problems) for key in _KEYS
    )
    keys = [key for key in _KEYS if config[key]]
    if beside and not config.train_only:
        keys.append("the rule for adapters")
    by = " and ".join(keys)
    if problems:
        return Freezing(frozenset(), frozenset(), by, problems)
    frozen = freeze | frozenset(beside)
    if config.train_only:
        frozen = frozenset(paths) - only - frozenset(fixed)
        if not frozen:
            problems.append(
                f"train_only={config.train_only!r} freezes nothing more: it names "
                "every parameter that would be trained anyway; leave it empty"
            )
    if config.freeze and config.train_only:
        problems.append(_both(config, sorted(freeze & only)))
    return Freezing(frozen, only, by, problems)


def _selected(
    key: str,
    text: str,
    paths: Sequence[str],
    fixed: Collection[str],
    beside: Collection[str],
    problems: list[str],
) -> frozenset[str]:
    """Returns the paths that a key's patterns match; adds what is wrong with them."""
    found: set[str] = set()
    for name in split_patterns(text):
        try:
            pattern = re.compile(SETS.get(name, name))
        except re.error as error:
            problems.append(f"{key}: {name!r} is not a regular expression: {error}")
            continue
        matched = matching(pattern, paths)
        if not matched and name in SETS:
            problems.append(f"{key}: this model has no parameters in the set {name!r}")
        elif not matched:
            sets = ", ".join(SETS)
            explained = like_none(name, paths, SETS)
            problems.append(f"{key}: {explained}; named sets are {sets}")
        elif set(matched) <= {*fixed, *beside}:
            why = "the objective freezes" if set(matched) <= {*fixed} else "rest"
            problems.append(
                f"{key}: {name!r} matches only parameters that {why} in any case"
                f"{' beside adapters' * (why == 'rest')}; leave it out"
            )
        found.update(matched)
    return frozenset(found)


def _both(config: Config, shared: Sequence[str]) -> str:
    if shared:
        return (
            f"freeze={config.freeze!r} and train_only={config.train_only!r} contradict "
            f"each other: both match {shortened(shared, most=3)}; set one of them"
        )
    return (
        f"freeze={config.freeze!r} has no effect beside "
        f"train_only={config.train_only!r}, which freezes everything that it does not "
        "name; set one of them"
    )


def waiting_for_head(config: Config, trained: Collection[str]) -> frozenset[str]:
    """Returns the trained paths that wait until the head is warmed up.

    These are the backbone's. The head, and what an objective adds beside the model,
    train from the first update.

    Args:
      config: a resolved config.
      trained: paths of the parameters that are trained at all.
    """
    if not config.head_only_steps:
        return frozenset()
    return frozenset(matching(SETS["backbone"], trained))


def wrong_head_only(config: Config, trained: Collection[str]) -> list[str]:
    """Lists why there cannot be a phase in which only the head trains."""
    steps, waiting = config.head_only_steps, waiting_for_head(config, trained)
    if not steps:
        return []
    if not waiting:
        return [
            f"head_only_steps={steps} has no effect: no parameter of the backbone is "
            "trained; leave it at 0"
        ]
    if len(waiting) == len(trained):
        return [
            f"head_only_steps={steps}: there is no head to train, nor anything else "
            "beside the backbone; leave it at 0"
        ]
    return []
