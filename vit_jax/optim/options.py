"""The keys and options that a run's optimisers read, and those that none reads."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vit_jax.config import Config, without_effect
from vit_jax.named import is_number
from vit_jax.optim.groups import Groups, parse_rows
from vit_jax.optim.rule import READ_BY_SOME, Option, Rule
from vit_jax.words import did_you_mean

_SECTION = "optimizer_options"


def options_of(config: Config, rule: Rule) -> dict[str, Any]:
    """Returns all options of an optimiser by name: the config's, else the defaults."""
    given = config[_SECTION]
    return {
        name: type(option.default)(given.get(name, option.default))
        for name, option in rule.options.items()
    }


def problems_of_rules(
    config: Config, rules: Mapping[str, Rule], used: Iterable[str], groups: Groups
) -> list[str]:
    """Lists options and settings that the optimisers of a run do not allow.

    Args:
      config: a resolved config.
      rules: all optimisers by name.
      used: names of the run's.
      groups: how each parameter is trained.
    """
    names = _in_order(config, used)
    found = _wrong_options(config, rules, names)
    averaging = [name for name in names if rules[name].averages]
    if averaging and config.ema_decay:
        found.append(
            f"ema_decay={config.ema_decay} with {_named(config, averaging)}, which "
            "averages the parameters itself; leave it at 0.0"
        )
    if averaging and not config.b1:
        found.append(
            f"b1={config.b1} with {_named(config, averaging)}: gradients would be "
            "computed without any averaging; give a number above 0, such as 0.9"
        )
    if config.weight_decay_form == "independent":
        found += _wrong_independent_decay(config, rules, names, groups)
    return found


def _wrong_independent_decay(
    config: Config, rules: Mapping[str, Rule], names: Collection[str], groups: Groups
) -> list[str]:
    """Lists what contradicts weight decay that is independent of the learning rate."""
    key = "weight_decay_form=independent"
    if not groups.values("decay") - {0.0}:
        return [f"{key} without weight decay has no effect; set weight_decay"]
    found = []
    if not config.learning_rate:
        found.append(
            f"{key} with learning_rate=0.0: the decay follows the schedule relative to "
            "its peak, which must be above 0"
        )
    if coupled := [name for name in names if rules[name].decay_in_norms]:
        found.append(
            f"{key} with {_named(config, coupled)}: its steps take on the norms of the "
            "parameters after weight decay is added, so the decay cannot be "
            "independent; leave it at scaled, or use another optimizer"
        )
    return found


def unread_keys(
    config: Config, rules: Mapping[str, Rule], others: Iterable[str] = ()
) -> list[str]:
    """Lists keys that are set although no optimiser of the run reads them.

    Args:
      config: a config with valid values.
      rules: all optimisers by name.
      others: names of optimisers that are used besides those of the config.
    """
    try:
        rows = parse_rows(config.groups, rules)
    except ValueError:
        return []  # then it is not known which optimisers the run uses
    named = [settings["rule"] for _, settings in rows if "rule" in settings]
    names = _in_order(config, [*named, *others])
    read, own = (
        keys_read(rules, names),
        {o for name in names for o in rules[name].options},
    )
    why = f"{_named(config, names)} read{'s' * (len(names) == 1)} {_listed(read)}"
    return [
        problem
        for key in READ_BY_SOME
        if key not in read
        for problem in without_effect(
            config, [key], why + f", and optimizer_options.{key}" * (key in own)
        )
    ]


def keys_read(rules: Mapping[str, Rule], names: Iterable[str]) -> list[str]:
    """Returns which of `READ_BY_SOME` some of the named optimisers read."""
    read = {key for name in names for key in rules[name].reads}
    return [key for key in READ_BY_SOME if key in read]


def _wrong_options(
    config: Config, rules: Mapping[str, Rule], names: Collection[str]
) -> list[str]:
    taken = {name: opt for rule in names for name, opt in rules[rule].options.items()}
    read = {key for name in names for key in rules[name].reads}
    found = []
    for name, value in config[_SECTION].items():
        if name in taken:
            if expected := _expected_instead(value, taken[name]):
                found.append(f"{_SECTION}.{name}={value!r:.200}: expected {expected}")
            continue
        takes = f"take{'s' * (len(names) == 1)} {_listed(taken) or 'no options'}"
        hint = did_you_mean(name, taken)
        if name in read:
            hint = f"; it is a key of its own: --config.{name}={value}"
        found.append(f"{_SECTION}.{name}: {_named(config, names)} {takes}{hint}")
    return found


def _expected_instead(value: Any, option: Option) -> str:
    """Says which values an option has if this is none of them; "" = it is."""
    if isinstance(option.default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(option.default, str):
        if value in option.choices:
            return ""
        return (
            f"one of {', '.join(option.choices)}{did_you_mean(value, option.choices)}"
        )
    whole = isinstance(option.default, int)
    right = is_number(value) and (isinstance(value, int) or not whole)
    if right and option.low <= value <= option.high:
        return ""
    limits = f"from {option.low} to {option.high}"
    if option.high == float("inf"):
        limits = f"of at least {option.low}"
    return f"a {'whole ' * whole}number {limits}"


def _in_order(config: Config, names: Iterable[str]) -> list[str]:
    """Returns the run's optimiser, then those of its groups by name."""
    return [config.optimizer, *sorted({*names} - {config.optimizer, ""})]


def _named(config: Config, names: Iterable[str]) -> str:
    return _listed(
        f"{'optimizer' if name == config.optimizer else 'rule'}={name}"
        for name in names
    )


def _listed(names: Iterable[str]) -> str:
    """Lists names in a sentence: `_listed("abc") == "a, b and c"`."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last
