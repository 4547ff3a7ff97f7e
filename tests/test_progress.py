"""The progress of commands on standard error, and never on standard output."""

import io
import sys

import pytest

from vit_jax import progress


class Clock:
    """A clock that is set by the test."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_log_file_gets_a_line_now_and_then(clock, capsys):
    with progress.Progress("evaluating", 1000) as shown:
        with shown.phase("compiling"):
            clock.now += 60
        for _ in range(10):
            shown.advance(100)
            clock.now += 20
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "compiling …",
        # Compiling is over and due for a line, but nothing is known about the pace.
        "evaluating: 100/1,000 images",
        "evaluating: 300/1,000 images, 5 images/s, 0:02:20 left",
        "evaluating: 500/1,000 images, 5 images/s, 0:01:40 left",
        "evaluating: 700/1,000 images, 5 images/s, 0:01:00 left",
        "evaluating: 900/1,000 images, 5 images/s, 0:00:20 left",
    ]


def test_without_a_total_only_the_pace_is_known(clock, capsys):
    with progress.Progress("reading", None, unit="files") as shown:
        for _ in range(3):
            shown.advance(50)
            clock.now += 25
    assert capsys.readouterr().err == "reading: 150 files, 2 files/s\n"


def test_a_short_task_or_one_that_is_not_shown_writes_nothing(clock, capsys):
    with progress.Progress("evaluating", 3) as shown:
        shown.advance(3)
    with progress.Progress("evaluating", 3, shown=False) as shown:
        with shown.phase("compiling"):
            clock.now += 100
        shown.advance(3)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress.Progress("evaluating [a]", 40) as shown:
        with shown.phase("compiling"):
            shown._bar.refresh()
        shown.advance(30)
        shown.advance(10)
    text = terminal.getvalue()
    assert "compiling" in text
    assert "40/40" in text
    assert "evaluating [a]" in text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("stream", [None, "closed"])
def test_it_never_stops_a_command(stream, monkeypatch, clock):
    if stream:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Progress("evaluating", 4) as shown:
        with shown.phase("compiling"):
            clock.now += 100
        shown.advance(4)
    assert shown._done == 4
