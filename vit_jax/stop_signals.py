"""The signals that ask a program to stop.

SIGHUP comes from a terminal that closes, often twice. SIGUSR1 and SIGUSR2 come from
schedulers before a time limit (SLURM's --signal, Grid Engine's -notify), and SIGXCPU
from the system once a second after a limit of processor time.
"""

import signal

# The signals that people send, and those that not every system has.
BY_PEOPLE = (signal.SIGINT, signal.SIGTERM)
_WARNINGS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


def stop_signals() -> list[signal.Signals]:
    """Lists the signals that should stop this process.

    Left out are those that this system does not have, and warnings that are ignored:
    nohup ignores SIGHUP. (A shell also ignores Ctrl-C for what a script starts in the
    background; a SIGINT that is sent there by hand should work nevertheless.)
    """
    known = [getattr(signal, name) for name in _WARNINGS if hasattr(signal, name)]
    heeded = [one for one in known if signal.getsignal(one) != signal.SIG_IGN]
    return [*BY_PEOPLE, *heeded]
