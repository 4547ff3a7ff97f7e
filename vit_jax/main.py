"""Trains and evaluates a Vision Transformer.

  python -m vit_jax.main --config=configs/b16.py[:ARGUMENT] [--workdir=DIR]
      [--config.KEY=VALUE ...]

A recipe is a file, or the name of one that comes with vit_jax: --config=b16[:ARGUMENT]
works from anywhere.
The same command, run again, continues where the last one stopped. Every key is
explained in vit_jax/config/keys.py. On several hosts, or in several processes, run the
same command in each; on Cloud TPU, SLURM, Open MPI and Kubernetes they find each other
(docs/scaling.md).

Exit status: 0 = done, 1 = an error that the message explains, 75 = another process of
the run is gone, 128 + the signal's number = stopped with everything saved: 130 by
Ctrl-C, 143 by SIGTERM, 129 by a terminal that closed (SIGHUP), 138 or 140 by a
scheduler's SIGUSR1 or SIGUSR2.
"""

import signal

if __name__ == "__main__":
    # Before training starts there is nothing to save, and Python's own handling of
    # Ctrl-C would interrupt libraries while they load or compile.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys

from absl import flags

from vit_jax import command
from vit_jax.config.recipes import WrongOverrides, load_recipe
from vit_jax.errors import problems_of


def main() -> None:
    """Runs the command; see the module's docstring."""
    command.guard(_main)


def _main() -> None:
    process_flags, wrong = _process_flags(), None
    try:
        config, workdir = load_recipe(sys.argv, process_flags, __doc__ or "")
    except WrongOverrides as error:
        config, workdir, wrong = error.config, "", error
    # Imported late: flag errors and --help should not wait for JAX.
    from vit_jax.compilation_cache import use_compilation_cache
    from vit_jax.host_memory import keep_freed_memory
    from vit_jax.train.loop import train_and_evaluate
    from vit_jax.train.processes.cluster import first, together
    from vit_jax.train.processes.interrupts import Interrupted
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
                # Report all problems at once, including those of valid overrides.
                set_up(config, problems=problems_of(wrong))
                raise wrong
            train_and_evaluate(config, workdir)
    except Interrupted as interrupted:
        if first():
            command.say_last(interrupted)
        sys.exit(interrupted.exit_status)


def _process_flags() -> flags.FlagValues:
    """Defines flags named after the arguments of `jax.distributed.initialize`."""
    own = flags.FlagValues()
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "with several processes, host:port on which the first one listens; not needed "
        "where the environment provides it, as on Cloud TPU or under SLURM",
        flag_values=own,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "number of processes that train together; 1: only this one, whatever the "
        "environment says",
        lower_bound=1,
        flag_values=own,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "index of this process, from 0",
        lower_bound=0,
        flag_values=own,
    )
    return own


if __name__ == "__main__":
    main()
