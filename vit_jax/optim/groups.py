"""Parameter groups: how each parameter is trained, from a table of path patterns.

`config.groups` holds the rows as text, separated by ";":

    head/.*: lr=10, decay=0; pos_embed: start=1000; patch_embed/.*: frozen

A pattern is a regular expression for the whole path ("blocks_00/mlp/fc1/kernel"). The
first row that matches a parameter applies; settings that it leaves out keep the values
that `weight_decay`, `weight_decay_on` and `layer_decay` give. With adapters, the rest
of the model is frozen, except for parameters whose row says "trained".
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from vit_jax.config import Config
from vit_jax.errors import Problems
from vit_jax.words import did_you_mean


class Group(NamedTuple):
    """The settings by which a parameter is trained."""

    lr: float = 1.0  # factor of the learning rate
    decay: float = 0.0  # decoupled weight decay, multiplied by the learning rate
    frozen: bool = False  # never changed: it has no gradient and no optimiser state
    rule: str = ""  # optimiser; "" = the run's
    start: int = 0  # number of finished updates before the first that changes it
    begin: int = 0  # number of finished updates before the first that it takes part in


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of all parameters.

    Attributes:
      by_path: path → group, in the order of the tree.
    """

    by_path: dict[str, Group]

    def of(self, setting: str, params: Any) -> Any:
        """Returns a tree like `params` with one setting of each parameter's group."""
        return jax.tree.map_with_path(
            lambda path, _: getattr(self.by_path[path_name(path)], setting), params
        )

    def trained(self, params: Any) -> Any:
        """Returns the tree without frozen parameters."""
        return _chosen(params, lambda path: not self.by_path[path].frozen)

    def merged(self, trained: Any, params: Any) -> Any:
        """Returns the whole tree: `trained`, and the frozen parameters of `params`."""
        if not self.freezes:
            return trained
        return _merged(trained, params)

    @property
    def freezes(self) -> bool:
        """Whether any parameter is frozen."""
        return any(group.frozen for group in self.by_path.values())

    def values(self, setting: str) -> set[Any]:
        """Returns all values of a setting among the parameters that are trained."""
        groups = self.by_path.values()
        return {getattr(group, setting) for group in groups if not group.frozen}


def make_groups(
    config: Config,
    params: Any,
    rules: Iterable[str],
    own: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    rests: Callable[[str], bool] = lambda _: False,
) -> Groups:
    """Finds the group of each parameter of a run.

    Args:
      config: a resolved config.
      params: the parameters or their shapes.
      rules: names of optimisers.
      own: the objective's settings by pattern, which rows of the config may replace;
        but what it freezes is frozen, whatever the config says.
      rests: path → whether that parameter is frozen unless a row of the config says
        "trained"; see
        `vit_jax.optim.adapters`.

    Raises:
      UserError: a row cannot be read, a pattern matches no parameter, weight decay
        applies to no parameter, or all parameters are frozen.
    """
    rows = parse_rows(config.groups, rules)
    factors = layer_factors(params, config.layer_decay)
    decays = re.compile(config.weight_decay_on)
    groups, used = {}, set()
    for path in map(path_name, (path for path, _ in jax.tree.leaves_with_path(params))):
        decay = config.weight_decay if decays.fullmatch(path) else 0.0
        settings = next((s for p, s in own.items() if re.fullmatch(p, path)), {})
        if settings.get("frozen"):
            groups[path] = Group(frozen=True)
            continue
        group = Group(lr=factors[path], decay=decay, frozen=rests(path))
        group = group._replace(**settings)
        for number, (pattern, settings) in enumerate(rows):
            if pattern.fullmatch(path):
                used.add(number)
                group = group._replace(**settings)
                break
        groups[path] = group
    unused = [p.pattern for i, (p, _) in enumerate(rows) if i not in used]
    always = any(settings.get("frozen") for settings in own.values())
    _check(config, groups, unused, some_frozen=always)
    return Groups(groups)


def _check(
    config: Config, groups: dict[str, Group], unused: list[str], some_frozen: bool
) -> None:
    example = next(iter(groups))
    frozen = " or that the objective freezes" if some_frozen else ""
    problems = [
        f"groups: {pattern!r} matches no parameter, or only those that an earlier row "
        f"matches{frozen}; parameter paths look like {example!r}"
        for pattern in unused
    ]
    if config.weight_decay and not any(group.decay for group in groups.values()):
        problems.append(
            f"weight_decay={config.weight_decay}, but "
            f"weight_decay_on={config.weight_decay_on!r} matches no parameter; "
            f"parameter paths look like {example!r}"
        )
    if all(group.frozen for group in groups.values()):
        problems.append("groups: every parameter is frozen; leave some to train")
    if problems:
        raise Problems(*problems)


def parse_rows(
    text: str, rules: Iterable[str]
) -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """Parses the rows of `config.groups`: patterns and the `Group` fields they set.

    Args:
      text: rows in the syntax that the module's docstring shows.
      rules: names of optimisers.

    Raises:
      UserError: names every row that cannot be read.
    """
    rows, problems = [], []
    for row in filter(None, map(str.strip, text.split(";"))):
        # Patterns may contain a colon, settings never do: split at the last one.
        pattern, colon, settings = row.rpartition(":")
        try:
            if not colon or not settings.strip():
                raise ValueError("expected PATTERN: SETTING, SETTING …")
            parsed = dict(_setting(part, rules) for part in settings.split(","))
            rows.append((re.compile(pattern.strip()), parsed))
        except (ValueError, re.error) as error:
            problems.append(f"groups: {row!r}: {error}")
    if problems:
        raise Problems(*problems)
    return rows


def _setting(text: str, rules: Iterable[str]) -> tuple[str, Any]:
    name, given, value = (part.strip() for part in text.partition("="))
    if name in ("frozen", "trained") and not given:
        return "frozen", name == "frozen"
    if name == "rule" and value in rules:
        return name, value
    if name == "rule":
        raise ValueError(f"rule={value}: choose from {', '.join(rules)}")
    kinds: dict[str, Callable[[str], Any]] = {
        "lr": float,
        "decay": float,
        "start": int,
        "begin": int,
    }
    if name not in kinds:
        names = ["frozen", "trained", *kinds, "rule"]
        raise ValueError(
            f"unknown setting {name!r}; choose from {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    try:
        number = kinds[name](value)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name}={value}: expected a number of at least 0")
    return name, number


def layer_factors(params: Any, decay: float) -> dict[str, float]:
    """Returns learning-rate factors by path, which shrink towards the input.

    The factor is decay^(n − layer) with n = depth + 1: patches, tokens and positions
    are layer 0, block i is layer i + 1, and the final norm, heads and whatever an
    objective adds are layer n (BEiT, arXiv:2106.08254; MAE's fine-tuning).

    Args:
      params: the parameters or their shapes.
      decay: factor between adjacent layers; 1 = all factors are 1.
    """
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    blocks = [int(m[1]) for path in paths if (m := re.match(r"blocks_(\d+)/", path))]
    last = max(blocks, default=-1) + 2

    def layer(path: str) -> int:
        if match := re.match(r"blocks_(\d+)/", path):
            return int(match[1]) + 1
        return 0 if path.partition("/")[0] in _INPUT else last

    return {path: decay ** (last - layer(path)) for path in paths}


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


def path_name(path: tuple[Any, ...]) -> str:
    """Writes the path of a parameter, as in "blocks_00/mlp/fc1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _chosen(tree: Any, chosen: Callable[[str], bool], prefix: str = "") -> Any:
    """Returns the nested dictionary without the leaves whose path is not chosen."""
    found = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            if below := _chosen(value, chosen, f"{path}/"):
                found[name] = below
        elif chosen(path):
            found[name] = value
    return found


def _merged(some: Any, whole: Any) -> Any:
    """Returns `whole` with the leaves of `some` in place of its own."""
    return {
        name: value
        if name not in some
        else _merged(some[name], value)
        if isinstance(value, dict)
        else some[name]
        for name, value in whole.items()
    }
