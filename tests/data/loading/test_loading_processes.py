"""Loading processes: signals to stop spare them, and they end with their run."""

import os
import signal
import threading
import types

from vit_jax.data.loading import processes


def test_a_loading_process_ignores_signals_until_its_run_is_gone(monkeypatch):
    handlers, ended, gone = {}, [], threading.Event()
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(os, "_exit", lambda status: (ended.append(status), ends.set()))
    ends = threading.Event()
    run = types.SimpleNamespace(join=gone.wait)
    monkeypatch.setattr("multiprocessing.parent_process", lambda: run)
    processes.prepare_process(0, 2)
    ignored = {one for one, handler in handlers.items() if handler == signal.SIG_IGN}
    assert {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2} <= ignored
    assert signal.SIGTERM not in ignored  # by which Python ends it at exit
    assert not ended
    gone.set()
    assert ends.wait(10)
    assert ended == [1]
