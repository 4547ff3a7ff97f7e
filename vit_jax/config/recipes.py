"""Parsing of a command line into a config: a recipe and overrides of its keys."""

import ast
import contextlib
import pathlib
import re
import runpy
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_jax import command
from vit_jax.config.keys import Config, default_config
from vit_jax.config.length import override_length
from vit_jax.config.values import flat_keys
from vit_jax.errors import Problems, UserError
from vit_jax.words import did_you_mean


class WrongOverrides(Problems):
    """An error that lists overrides that cannot be applied; `config` has the others."""

    def __init__(self, problems: list[str], config: Config):
        super().__init__(*problems)
        self.config = config


def load_recipe(
    argv: Sequence[str],
    flag_values: flags.FlagValues | None = None,
    usage: str = "",
) -> tuple[Config, str]:
    """Reads a command line into a config.

    Args:
      argv: the program's name and its arguments.
      flag_values: the command's other flags; they are set.
      usage: text that --help prints above the flags.

    Returns:
      The recipe with the overrides applied, and the work directory ("" = not given).

    Raises:
      UserError: there is no recipe, or an unexpected argument.
      WrongOverrides: lists all overrides with an unknown key or a value of the wrong
        type.
    """
    flag_values = flag_values or flags.FlagValues()
    flags.DEFINE_string(
        "config",
        None,
        "recipe, as in b16:cifar100 or FILE.py:cifar100",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "workdir",
        "",
        "directory for checkpoints and metrics; empty: runs/NAME, derived from the "
        "config",
        flag_values=flag_values,
    )
    rest, overrides = _split(argv)
    unexpected = command.parse(rest, flag_values, usage)
    if unexpected:
        raise UserError(
            f"unexpected arguments {unexpected}; overrides look like --config.seed=1"
        )
    if not flag_values.config:
        raise UserError(
            "no recipe given; pass one, as in --config=b16 or --config=FILE.py"
        )
    config = _read_recipe(flag_values.config)
    wrong = {key: _override(config, key, token) for key, token in overrides.items()}
    found = [problem for problem in wrong.values() if problem]
    applied = [key for key, problem in wrong.items() if not problem]
    config = override_length(config, applied)
    if found:
        raise WrongOverrides(found, config)
    return config, flag_values.workdir


_OVERRIDE = re.compile(r"--(?:no)?config\.([\w.]+)")


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates the overrides from argv: {key: "--config.KEY=VALUE"}.

    "--config.KEY VALUE" means the same, even for booleans: to leave the value out,
    write "--config.KEY" before another flag or at the end.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    waiting = ""  # key of an override without "=", whose value may follow
    for token in argv:
        if match := _OVERRIDE.match(token):
            overrides[match[1]] = token
            waiting = "" if "=" in token else match[1]
        elif waiting and not token.startswith("--"):
            overrides[waiting] += f"={token}"
            waiting = ""
        else:
            rest.append(token)
            waiting = ""
    return rest, overrides


def named_recipes() -> dict[str, pathlib.Path]:
    """Finds the recipes that come with vit_jax: name → file.

    In a checkout they are in the folder configs/; an installed package contains them.
    """
    package = pathlib.Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if files := sorted(folder.glob("*.py")):
            return {file.stem: file for file in files if file.stem != "__init__"}
    return {}


def _find_recipe(flag: str) -> tuple[pathlib.Path, str]:
    """Splits `FILE.py:ARGUMENT` or `NAME:ARGUMENT` into the file and the argument."""
    # The last ".py" ends the file name, so that paths may contain a colon (Windows).
    if match := re.fullmatch(r"(.*\.py)(?::(.*))?", flag, re.DOTALL):
        path = pathlib.Path(match[1])
        if path.is_file():
            return path, match[2] or ""
        others = sorted(str(file) for file in path.parent.glob("*.py"))
        there = f"; found {', '.join(others)}" if others else ""
        raise UserError(
            f"--config={flag}: no recipe at {path}{there}. Expected FILE.py, "
            "FILE.py:ARGUMENT, or the name of a recipe: "
            f"{', '.join(named_recipes())}"
        )
    name, _, argument = flag.partition(":")
    recipes = named_recipes()
    if name in recipes:
        return recipes[name], argument
    raise UserError(
        f"--config={flag}: no recipe {name!r}; choose from {', '.join(recipes)}, each "
        "with or without :ARGUMENT, or pass a file, as FILE.py or FILE.py:ARGUMENT"
        f"{did_you_mean(name, recipes)}"
    )


def _read_recipe(flag: str) -> Config:
    """Runs `get_config(argument)` in the recipe that the flag names."""
    path, argument = _find_recipe(flag)
    with _recipe_errors_explained(path):
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise UserError(
                f"{path} has no function get_config(argument); a recipe must define one"
            )
        config = get_config(argument) if argument else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config in {path} returns {config!r:.100}; expected a config made by "
            "vit_jax.config.default_config()"
        )
    return config


@contextlib.contextmanager
def _recipe_errors_explained(path: pathlib.Path) -> Iterator[None]:
    """Turns errors in a recipe, the user's own code, into messages with the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        reason = f"{type(error).__name__}: {error}"
        if unknown := re.search(r"Key \W*(\w+)\W* does not exist", str(error)):
            keys = flat_keys(default_config())
            reason = _no_such_key(unknown[1], keys)
        raise UserError(f"the recipe {where}: {reason}") from error


def _no_such_key(name: str, keys: Sequence[str]) -> str:
    end = did_you_mean(name, keys, count=3, cutoff=0.5) or "."
    return f"{name}: no such key{end} All keys are in vit_jax/config/keys.py"


def _override(config: Config, key: str, token: str) -> str:
    """Applies one override to the config; returns what is wrong with it, or ""."""
    flag_values, argv = flags.FlagValues(), ["", token]
    if key not in flat_keys(config):
        if match := _OPTION.fullmatch(token):
            _add_option(config, match["section"], match["name"], match["value"])
            return ""
        if key.partition(".")[0] in _OPTIONS and "." in key:
            return f"{token}: expected a name and a value, as in --config.{key}=VALUE"
        sections = [name for name in config if isinstance(config[name], ConfigDict)]
        if key in sections:
            return f"{token}: expected {_expected(config, key)}"
        return f"--config.{_no_such_key(key, flat_keys(config))}"
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=flag_values, sys_argv=argv
        )
        flag_values(argv)
    except (flags.Error, TypeError, ValueError):
        return f"{token}: expected {_expected(config, key)}"
    return ""


# An option that only an objective, a loss or an optimiser knows; its own check names
# unknown ones.
_OPTIONS = "objective_options", "loss_options", "optimizer_options"
_OPTION = re.compile(
    rf"--config\.(?P<section>{'|'.join(_OPTIONS)})"
    r"\.(?P<name>[A-Za-z]\w*)=(?P<value>.*)",
    re.DOTALL,
)


def _add_option(config: Config, section: str, name: str, text: str) -> None:
    """Adds an option to the config: a number, a truth value, sizes or text."""
    value: Any = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
    with config.unlocked():
        config[section][name] = value if isinstance(value, _SIMPLE) else text


_SIMPLE = (bool, int, float, str, tuple)


def _expected(config: Config, dotted: str) -> str:
    *sections, key = dotted.split(".")
    for section in sections:
        config = config[section]
    kind = config.get_type(key)
    if kind is ConfigDict:
        if key in _OPTIONS:
            return f"one of its options, as in --config.{dotted}.NAME=VALUE"
        return f"one of its keys, such as {dotted}.{next(iter(config[key]))}"
    current = "" if config[key] is None else f"; it is {config[key]} now"
    return _KINDS[kind] + current


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "whole numbers, as in 384 or 384,256",
}
