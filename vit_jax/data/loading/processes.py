"""The lives of loading processes: signals spare them, and they end with their run."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker

from vit_jax.stop_signals import stop_signals

_GRACE = 60.0  # seconds in which a run that was asked to stop closes its processes


def start_tracker() -> None:
    """Starts Python's tracker of shared memory so that no signal to stop ends it.

    A terminal's or scheduler's signal reaches it too. Without it, each array that a
    loading process sends would be followed by a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has no tracker either
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())
    try:
        resource_tracker.ensure_running()  # it inherits which signals are blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_process(_index: int, _count: int) -> None:
    """Sets up a loading process: signals that stop the run do not end it first.

    Ctrl-C and a terminal's or scheduler's signals often reach all processes of a run.
    The training run handles them and closes this process in the end.
    """
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    # Python itself ends processes by SIGTERM when it exits, and waits for them.
    signal.signal(signal.SIGTERM, _end_later)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """Ends this process once the run is gone; a kill leaves no time to close it."""
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()
        os._exit(1)


def _end_later(number: int, _frame: object) -> None:
    timer = threading.Timer(_GRACE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
