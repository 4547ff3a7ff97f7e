"""Parameter groups: how each parameter is trained, from a table of path patterns.

`config.groups` holds the rows as text, separated by ";":

    head/.*: lr=10, decay=0; pos_embed: start=1000; blocks_.*: clip=0.5

A pattern is a regular expression for the whole path ("blocks_00/mlp/fc1/kernel"). The
first row that matches a parameter applies; settings that it leaves out keep the values
that `weight_decay`, `weight_decay_on`, `layer_decay` and `head_only_steps` give. What
`freeze` or `train_only` freezes, or what rests beside adapters, belongs to no row.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from vit_jax.config import Config
from vit_jax.errors import Problems
from vit_jax.optim.freezing import (
    Freezing,
    read_freezing,
    waiting_for_head,
    wrong_head_only,
)
from vit_jax.optim.layers import layer_factors, untrained_blocks
from vit_jax.optim.paths import like_none, matching, paths_of
from vit_jax.optim.units import without_adaptive_clipping
from vit_jax.trees import chosen, overlaid, path_name
from vit_jax.words import did_you_mean, shortened


class Group(NamedTuple):
    """The settings by which a parameter is trained."""

    lr: float = 1.0  # factor of the learning rate
    decay: float = 0.0  # decoupled weight decay, multiplied by the learning rate
    frozen: bool = False  # never changed: it has no gradient and no optimiser state
    rule: str = ""  # optimiser; "" = the run's
    start: int = 0  # number of finished updates before the first that changes it
    begin: int = 0  # number of finished updates before the first that it takes part in


class Limit(NamedTuple):
    """A limit on the norm of the gradients of some parameters together."""

    max_norm: float
    paths: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of all parameters.

    Attributes:
      by_path: path → group, in the order of the tree.
      limits: one for each row with the setting `clip`, in their order.
    """

    by_path: dict[str, Group]
    limits: tuple[Limit, ...] = ()

    def of(self, setting: str, params: Any) -> Any:
        """Returns a tree like `params` with one setting of each parameter's group."""
        return jax.tree.map_with_path(
            lambda path, _: getattr(self.by_path[path_name(path)], setting), params
        )

    def trained(self, params: Any) -> Any:
        """Returns the tree without frozen parameters."""
        return chosen(params, lambda path: not self.by_path[path].frozen)

    def merged(self, trained: Any, params: Any) -> Any:
        """Returns the whole tree: `trained`, and the frozen parameters of `params`."""
        if not self.freezes:
            return trained
        return overlaid(trained, params)

    @property
    def freezes(self) -> bool:
        """Whether any parameter is frozen."""
        return any(group.frozen for group in self.by_path.values())

    @property
    def untrained_blocks(self) -> int:
        """The number of the first blocks in which and before which nothing trains."""
        trained = [path for path, group in self.by_path.items() if not group.frozen]
        return untrained_blocks([*self.by_path], trained)

    def values(self, setting: str) -> set[Any]:
        """Returns all values of a setting among the parameters that are trained."""
        groups = self.by_path.values()
        return {getattr(group, setting) for group in groups if not group.frozen}


Row = tuple[re.Pattern[str], dict[str, Any]]


def make_groups(
    config: Config,
    params: Any,
    rules: Iterable[str],
    own: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    *,
    rests: Callable[[str], bool] = lambda _: False,
    norm_after_pool: bool = False,
) -> Groups:
    """Finds the group of each parameter of a run.

    Args:
      config: a resolved config.
      params: the parameters or their shapes.
      rules: names of optimisers.
      own: the objective's settings by pattern, which rows of the config may replace;
        but what it freezes is frozen, whatever the config says.
      rests: path → whether that parameter is frozen beside adapters unless
        `train_only` names it; see `vit_jax.optim.adapters`.
      norm_after_pool: whether the model's final norm follows pooling.

    Raises:
      UserError: lists what is wrong. A row cannot be read, or applies to no parameter;
        patterns of `freeze` or `train_only` match nothing or contradict each other;
        weight decay, the phase of the head or a limit on gradients applies to no
        parameter; or all parameters are frozen.
    """
    paths, problems, rows = paths_of(params), [], []
    try:
        rows = parse_rows(config.groups, rules)
    except Problems as error:
        problems += error.args
    mine = {path: _first(own, path) for path in paths}
    fixed = {path for path in paths if mine[path].get("frozen")}
    beside = [path for path in paths if rests(path)]
    freezing = read_freezing(config, paths, fixed, beside)
    if problems := problems + freezing.problems:
        raise Problems(*problems)
    factors = layer_factors(
        *(params, config.layer_decay, config.layer_decay_form, config.layer_decay_min),
        norm_after_pool=norm_after_pool,
    )
    decays = re.compile(config.weight_decay_on)
    frozen = fixed | freezing.frozen
    free = [path for path in paths if path not in frozen]
    waiting = waiting_for_head(config, free)
    taken = {path: _first_row(rows, path) for path in free}
    groups = {}
    for path in paths:
        if path not in taken:
            groups[path] = Group(frozen=True)
            continue
        decay = config.weight_decay if decays.fullmatch(path) else 0.0
        group = Group(lr=factors[path], decay=decay)
        if path in waiting:
            wait = config.head_only_steps
            group = group._replace(start=wait, begin=wait)
        group = group._replace(**mine[path])
        if (number := taken[path]) is not None:
            settings = {k: v for k, v in rows[number][1].items() if k in Group._fields}
            group = group._replace(**settings)
        groups[path] = group
    found = Groups(groups, _limits(rows, taken, groups))
    problems = _wrong_rows(config, rows, taken, freezing, paths, some_fixed=bool(fixed))
    problems += _early_rows(config, rows, taken, waiting)
    problems += _wrong_wholes(config, found, freezing)
    if problems:
        raise Problems(*problems)
    return found


def _first(own: Mapping[str, Mapping[str, Any]], path: str) -> Mapping[str, Any]:
    return next((s for pattern, s in own.items() if re.fullmatch(pattern, path)), {})


def _first_row(rows: Sequence[Row], path: str) -> int | None:
    found = (i for i, (pattern, _) in enumerate(rows) if pattern.fullmatch(path))
    return next(found, None)


def _limits(
    rows: Sequence[Row], taken: Mapping[str, int | None], groups: Mapping[str, Group]
) -> tuple[Limit, ...]:
    return tuple(
        Limit(
            settings["clip"],
            frozenset(p for p, i in taken.items() if i == n and not groups[p].frozen),
        )
        for n, (_, settings) in enumerate(rows)
        if "clip" in settings
    )


def _wrong_rows(
    config: Config,
    rows: Sequence[Row],
    taken: Mapping[str, int | None],
    freezing: Freezing,
    paths: Collection[str],
    *,
    some_fixed: bool,
) -> list[str]:
    """Lists rows that apply to no parameter, or freeze what `train_only` names."""
    problems = []
    elsewhere = " or that the objective freezes" * some_fixed
    elsewhere += f" or that {freezing.by} freezes" * bool(freezing.by)
    for number, (pattern, settings) in enumerate(rows):
        mine = [path for path, row in taken.items() if row == number]
        matched = matching(pattern, paths)
        if settings.get("frozen") and (both := sorted(freezing.named & {*mine})):
            problems.append(
                f"groups: {pattern.pattern!r} freezes {shortened(both, most=3)}, which "
                f"train_only={config.train_only!r} names; take them from one of the two"
            )
        if mine:
            continue
        if not matched:
            problems.append(f"groups: {like_none(pattern.pattern, paths)}")
            continue
        rivals = {
            rows[i][0].pattern for p in matched if (i := taken.get(p)) is not None
        }
        problems.append(
            f"groups: {pattern.pattern!r} matches no parameter, or only those that an "
            f"earlier row matches{elsewhere}; "
            + (
                f"here {', '.join(map(repr, sorted(rivals)))} comes first: put the "
                "narrower pattern before the wider one"
                if rivals
                else f"such as {matched[0]!r}; leave the row out"
            )
        )
    return problems


def _early_rows(
    config: Config,
    rows: Sequence[Row],
    taken: Mapping[str, int | None],
    waiting: Collection[str],
) -> list[str]:
    """Lists rows that would train the backbone while only the head should train."""
    problems = {}
    for path in waiting:
        if (number := taken[path]) is None:
            continue
        pattern, settings = rows[number]
        early = [
            f"{name}={settings[name]}"
            for name in ("start", "begin")
            if settings.get(name, config.head_only_steps) < config.head_only_steps
        ]
        if early:
            problems[number] = (
                f"groups: {pattern.pattern!r} has {', '.join(early)}, but the backbone "
                f"waits for head_only_steps={config.head_only_steps}; leave it out, or "
                "give a larger number"
            )
    return [problems[number] for number in sorted(problems)]


def _wrong_wholes(config: Config, groups: Groups, freezing: Freezing) -> list[str]:
    """Lists settings of the whole run that apply to no parameter."""
    by_path, example = groups.by_path, next(iter(groups.by_path))
    trained = [path for path, group in by_path.items() if not group.frozen]
    problems = []
    if config.weight_decay and not any(group.decay for group in by_path.values()):
        which = " that is trained" * groups.freezes
        problems.append(
            f"weight_decay={config.weight_decay}, but "
            f"weight_decay_on={config.weight_decay_on!r} matches no parameter{which}; "
            f"parameter paths look like {example!r}"
        )
    if not trained:
        by = freezing.by if freezing.frozen else "groups"
        return [*problems, f"{by}: every parameter is frozen; leave some to train"]
    problems += wrong_head_only(config, trained)
    if config.grad_clip_adaptive and not set(trained) - without_adaptive_clipping(
        trained
    ):
        problems.append(
            f"grad_clip_adaptive={config.grad_clip_adaptive} has no effect: it leaves "
            "out the last layer of the head, and nothing else is trained; leave it at 0"
        )
    problems += [
        f"groups: clip={limit.max_norm} is for all parameters that are trained, and "
        f"so is grad_clip_norm={config.grad_clip_norm}; set grad_clip_norm to 0, or "
        "leave clip out"
        for limit in groups.limits
        if config.grad_clip_norm and limit.paths == set(trained)
    ]
    return problems


def parse_rows(text: str, rules: Iterable[str]) -> list[Row]:
    """Parses the rows of `config.groups`: patterns, and the settings of each.

    The settings are fields of `Group`, and `clip`.

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
            if parsed.get("frozen") and "clip" in parsed:
                raise ValueError("what is frozen has no gradient to clip")
            rows.append((re.compile(pattern.strip()), parsed))
        except (ValueError, re.error) as error:
            problems.append(f"groups: {row!r}: {error}")
    if problems:
        raise Problems(*problems)
    return rows


def _setting(text: str, rules: Iterable[str]) -> tuple[str, Any]:
    name, given, value = (part.strip() for part in text.partition("="))
    if name == "frozen" and not given:
        return name, True
    if name == "rule" and value in rules:
        return name, value
    if name == "rule":
        raise ValueError(f"rule={value}: choose from {', '.join(rules)}")
    kinds: dict[str, Callable[[str], Any]] = {
        "lr": float,
        "decay": float,
        "start": int,
        "begin": int,
        "clip": float,
    }
    if name not in kinds:
        names = ["frozen", *kinds, "rule"]
        raise ValueError(
            f"unknown setting {name!r}; choose from {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    try:
        number = kinds[name](value)
    except ValueError:
        number = -1
    if name == "clip" and not 0 < number < float("inf"):
        raise ValueError(f"clip={value}: expected a number above 0")
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name}={value}: expected a number of at least 0")
    return name, number
