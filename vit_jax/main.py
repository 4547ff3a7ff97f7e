"""Trains and evaluates a Vision Transformer.

  python -m vit_jax.main --config=configs/b16.py[:ARGUMENT] [--workdir=DIR]
      [--config.KEY=VALUE ...]

The same command again goes on where the last one stopped. Every key is explained in
vit_jax/config.py. Several hosts, or processes, run the same command; on Cloud TPU,
SLURM, Open MPI and Kubernetes they find each other (docs/scaling.md).

Exit status: 0 = done, 1 = an error that the message explains, 130 or 143 = stopped by
Ctrl-C or SIGTERM with everything saved, 75 = another process of the run is gone.
"""

import signal

if __name__ == "__main__":
    # Before training starts there is nothing to save, and Python's own reaction to
    # Ctrl-C breaks into libraries that are being loaded or compile.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_jax import command
from vit_jax import config as config_lib
from vit_jax.config import Config
from vit_jax.errors import UserError


def main() -> None:
    """The command; see the module's docstring."""
    command.guard(_main)


class WrongOverrides(UserError):
    """Overrides that cannot be applied; `config` has all the others."""

    def __init__(self, problems: list[str], config: Config):
        super().__init__("\n".join(problems))
        self.problems, self.config = problems, config


def load_recipe(
    argv: Sequence[str], flag_values: flags.FlagValues | None = None
) -> tuple[Config, str]:
    """Reads a command line into a config.

    Args:
      argv: the program's name and its arguments.
      flag_values: flags that the command has besides; they are set.

    Returns:
      The recipe with the overrides applied, and the work directory ("" = not given).

    Raises:
      UserError: no recipe, or an argument that is none.
      WrongOverrides: all of those that name no key, or give a value of the wrong type.
    """
    flag_values = flag_values or flags.FlagValues()
    flags.DEFINE_string(
        "config", None, "recipe, as in configs/b16.py:cifar100", flag_values=flag_values
    )
    flags.DEFINE_string(
        "workdir",
        "",
        "where checkpoints and metrics go; empty: runs/NAME, made of the config",
        flag_values=flag_values,
    )
    rest, overrides = _split(argv)
    unexpected = command.parse(rest, flag_values, __doc__ or "")
    if unexpected:
        raise UserError(
            f"unexpected arguments {unexpected}; overrides look like --config.seed=1"
        )
    if not flag_values.config:
        raise UserError("no recipe; pass one, as in --config=configs/b16.py")
    config = _read_recipe(flag_values.config)
    wrong = {key: _override(config, key, token) for key, token in overrides.items()}
    found = [problem for problem in wrong.values() if problem]
    if {"total_steps", "total_epochs"} <= overrides.keys():
        found.append("--config.total_steps and --config.total_epochs: give one")
    applied = [key for key, problem in wrong.items() if not problem]
    config = config_lib.override_length(config, applied)
    if found:
        raise WrongOverrides(found, config)
    return config, flag_values.workdir


def _main() -> None:
    process_flags, wrong = _process_flags(), None
    try:
        config, workdir = load_recipe(sys.argv, process_flags)
    except WrongOverrides as error:
        config, workdir, wrong = error.config, "", error
    # Imported only now: flag errors and --help should not wait for JAX.
    from vit_jax.compilation_cache import use_compilation_cache
    from vit_jax.host_memory import keep_freed_memory
    from vit_jax.train.interrupts import Interrupted
    from vit_jax.train.loop import train_and_evaluate
    from vit_jax.train.processes import first, together
    from vit_jax.train.setup import set_up

    use_compilation_cache()
    keep_freed_memory()
    try:
        with together(
            process_flags.coordinator_address,
            process_flags.num_processes,
            process_flags.process_id,
        ):
            if wrong:
                # All problems at once: those of values that could be read as well.
                set_up(config, problems=wrong.problems)
                raise wrong
            train_and_evaluate(config, workdir)
    except Interrupted as interrupted:
        if first():
            print(interrupted, file=sys.stderr)
        sys.exit(interrupted.exit_status)


def _process_flags() -> flags.FlagValues:
    """Named as the arguments of `jax.distributed.initialize`."""
    own = flags.FlagValues()
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "of several processes: host:port on which the first one is to listen; where "
        "the environment tells, as on Cloud TPU or under SLURM, this is not needed",
        flag_values=own,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "how many processes train together; 1: none but this one, whatever the "
        "environment tells",
        lower_bound=1,
        flag_values=own,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "which of these this one is, from 0",
        lower_bound=0,
        flag_values=own,
    )
    return own


_OVERRIDE = re.compile(r"--(?:no)?config\.([\w.]+)")


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes the overrides out of argv: {key: "--config.KEY=VALUE"}.

    "--config.KEY VALUE" means the same, also for what is true or false: to leave the
    value out, write "--config.KEY" before another flag or at the end.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    waiting = ""  # the key of an override without "=": the value may follow
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


def _read_recipe(flag: str) -> Config:
    """Runs `get_config(argument)` of the file in `FILE.py:ARGUMENT`."""
    # The last ".py" ends the file name, so that paths may hold a colon (Windows).
    match = re.fullmatch(r"(.*\.py)(?::(.*))?", flag, re.DOTALL)
    path = pathlib.Path(match[1] if match else flag)
    if match is None or not path.is_file():
        recipes = sorted(str(file) for file in path.parent.glob("*.py"))
        there = f"; there are {', '.join(recipes)}" if recipes else ""
        raise UserError(
            f"--config={flag}: no recipe at {path}{there}. Expected FILE.py or "
            "FILE.py:ARGUMENT"
        )
    with _recipe_errors_explained(path):
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise UserError(f"{path} has no function get_config(argument)")
        config = get_config(match[2]) if match[2] else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of {path} returns {config!r:.100}; expected the config that "
            "it has made of vit_jax.config.default_config()"
        )
    return config


@contextlib.contextmanager
def _recipe_errors_explained(path: pathlib.Path) -> Iterator[None]:
    """A recipe is the user's own: its mistakes end in a message that names the line."""
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
            keys = config_lib.flat_keys(config_lib.default_config())
            reason = _no_such_key(unknown[1], keys)
        raise UserError(f"the recipe {where}: {reason}") from error


def _no_such_key(name: str, keys: Sequence[str]) -> str:
    names = config_lib.nearest(name, keys)
    hint = f"; nearest: {', '.join(names)}" if names else ""
    return f"{name}: no such key{hint}. All keys are in vit_jax/config.py"


def _override(config: Config, key: str, token: str) -> str:
    """Applies one override to the config; returns what is wrong with it, or ""."""
    flag_values, argv = flags.FlagValues(), ["", token]
    if key not in config_lib.flat_keys(config):
        sections = [name for name in config if isinstance(config[name], ConfigDict)]
        if key in sections:
            return f"{token}: expected {_expected(config, key)}"
        return f"--config.{_no_such_key(key, config_lib.flat_keys(config))}"
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=flag_values, sys_argv=argv
        )
        flag_values(argv)
    except (flags.Error, TypeError, ValueError):
        return f"{token}: expected {_expected(config, key)}"
    return ""


def _expected(config: Config, dotted: str) -> str:
    *sections, key = dotted.split(".")
    for section in sections:
        config = config[section]
    kind = config.get_type(key)
    if kind is ConfigDict:
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


if __name__ == "__main__":
    main()
