import io
import json
import math
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vit_jax.errors import UserError
from vit_jax.train.reporting import metrics
from vit_jax.train.reporting.metrics import MetricWriter, Progress, Stopwatch


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def events(workdir):
    """Reads all events of all TensorBoard files: length, checksum, bytes, checksum."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    return found


def test_numbers_survive_exactly(tmp_path):
    values = {
        "loss": 0.1 + 0.2,
        "tiny": 5e-324,
        "float32": np.float32(0.1),
        "bfloat16": jnp.bfloat16(1 / 3),
        "jax": jnp.float32(1 / 3),
        "count": np.int64(2**60 + 1),
    }
    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(3, "train", values)
    assert lines(tmp_path) == [
        {"step": 3, "split": "train"} | {k: v.item() for k, v in arrays(values)}
    ]
    assert lines(tmp_path)[0]["count"] == 2**60 + 1


def arrays(values):
    return [(k, np.asarray(v)) for k, v in values.items()]


def test_non_finite_numbers_are_still_json(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, "eval", {"a": math.nan, "b": np.float32("inf"), "c": -math.inf})
        with pytest.raises(TypeError, match="a metric must be a number, got 'x'"):
            writer.write(2, "eval", {"a": "x"})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=refuse)
    assert [line[k] for k in "abc"] == ["NaN", "Infinity", "-Infinity"]
    assert math.isnan(float(line["a"]))
    assert float(line["c"]) == -math.inf


def test_a_line_is_written_once(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        assert not writer.recorded(1, "train")
        writer.write(1, "train", {"loss": 1.0})
        writer.write(1, "eval", {"loss": 2.0})
        assert writer.recorded(1, "train")
        assert not writer.recorded(2, "train")
        with pytest.raises(AssertionError, match="train metrics of step 1"):
            writer.write(1, "train", {"loss": 1.0})
    assert [(x["step"], x["split"]) for x in lines(tmp_path)] == [
        (1, "train"),
        (1, "eval"),
    ]


@pytest.mark.parametrize(
    "torn", ["", '{"step": 4, "spl', '{"step": 2}', "\x00\x00", "7"]
)
def test_resuming_removes_lines_after_the_checkpoint(tmp_path, torn):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", {"loss": step / 3})
        writer.write(2, "eval", {"loss": 0.5})
    file = tmp_path / "metrics.jsonl"
    with open(file, "a") as stream:
        stream.write(torn)
    with MetricWriter(tmp_path, resume_step=2) as writer:
        assert writer.recorded(2, "eval")
        assert not writer.recorded(3, "train")
        writer.write(3, "train", {"loss": 1.0})
    assert lines(tmp_path) == [
        {"step": 1, "split": "train", "loss": 1 / 3},
        {"step": 2, "split": "train", "loss": 2 / 3},
        {"step": 2, "split": "eval", "loss": 0.5},
        {"step": 3, "split": "train", "loss": 1.0},
    ]
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "tensorboard"]
    purged = [e.step for e in events(tmp_path) if e.session_log.status]
    assert SessionLog.START == 1
    assert 3 in purged


def test_a_whole_line_before_the_torn_one_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train"}\n{"step": 1,'
    )
    with MetricWriter(tmp_path, resume_step=1) as writer:
        assert writer.recorded(1, "train")
        assert lines(tmp_path) == [{"step": 1, "split": "train"}]


def test_the_file_is_not_rewritten_without_need(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, "train", {"loss": 0.5})
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    with MetricWriter(tmp_path, resume_step=1):
        assert (tmp_path / "metrics.jsonl").stat().st_ino == before


def test_a_foreign_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "a"}\nhello\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 .*'hello'; remove"):
        MetricWriter(tmp_path, resume_step=5)


def test_lines_can_be_read_at_once_and_flush_reaches_the_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), fsync(fd)))
    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, "train", {"loss": 0.25})
        assert lines(tmp_path) == [{"step": 1, "split": "train", "loss": 0.25}]
        synced.clear()
        writer.flush()
        assert len(synced) == 2  # the lines and TensorBoard's file
        found = [e for e in events(tmp_path) if e.HasField("summary")]
    assert [(e.step, e.summary.value[0].tag) for e in found] == [(1, "train/loss")]
    assert found[0].summary.value[0].simple_value == 0.25


DISK_FULL = """
import resource, signal, sys
from vit_jax.errors import UserError
from vit_jax.train.reporting.metrics import MetricWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
step = 0
try:
    with MetricWriter(sys.argv[1], resume_step=0) as writer:
        for step in range(1000):
            writer.write(step, "train", {"loss": 0.5})
except UserError as error:
    print(error)
    print(step)
"""


def test_a_full_disk_is_reported(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    message, step = child.stdout.splitlines()
    assert "metrics cannot be written to" in message
    assert "(File too large)" in message
    assert child.stderr == ""
    with MetricWriter(tmp_path, resume_step=int(step)) as writer:
        assert writer.recorded(int(step) - 1, "train")
        writer.write(int(step) + 1, "train", {"loss": 0.5})


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match=r"written to .*tensorboard \(File exists\)"):
        MetricWriter(tmp_path, resume_step=0)


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(metrics.time, "monotonic", lambda: self.now)


def show(progress, step, loss=0.25):
    progress.update(step, loss=loss, images_per_second=1234.4, waiting=0.034)


def test_progress_in_a_log_file_is_plain_lines(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with Progress(total_steps=130, start=20) as progress:
        clock.now += 60  # compiling
        show(progress, 30)
        clock.now += 5
        show(progress, 40)
        clock.now += 45
        show(progress, 130, loss=math.nan)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 30/130 | loss 0.2500 | 1,234 images/s | ? left | 3% waiting for data",
        "step 40/130 | loss 0.2500 | 1,234 images/s | 0:00:45 left | "
        "3% waiting for data",
        "step 130/130 | loss nan | 1,234 images/s | 0:00:00 left | 3% waiting for data",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_bar(capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(total_steps=130, start=20) as progress:
        show(progress, 30)
        print("a result")
        show(progress, 130)
    assert sys.stderr is terminal
    shown = terminal.getvalue()
    assert "130/130" in shown
    assert "loss 0.2500 | 1,234 images/s | 0:00:00 left | 3% waiting for data" in shown
    assert capsys.readouterr().out == "a result\n"


def test_an_error_ends_the_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    def fail():
        with Progress(total_steps=9, start=0) as progress:
            show(progress, 1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert sys.stderr is terminal
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back
    with Progress(total_steps=9, start=0) as progress:  # and another bar can start
        show(progress, 2)


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


class FullTerminal(FullDisk, Terminal):
    pass


@pytest.mark.parametrize("stderr", ["closed", "none", "full", "terminal"])
def test_progress_never_stops_a_run(monkeypatch, stderr):
    closed = io.StringIO()
    streams = {
        "closed": closed,
        "none": None,
        "full": FullDisk(),
        "terminal": FullTerminal(),
    }
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", streams[stderr])
    with Progress(total_steps=9, start=0) as progress:
        show(progress, 1)
        closed.close()
        show(progress, 2)
    with Progress(total_steps=9, start=0) as progress:
        show(progress, 3)
    assert sys.stderr is streams[stderr]


def test_stopwatch(monkeypatch):
    clock = Clock(monkeypatch)
    stopwatch = Stopwatch()
    with stopwatch.waiting():
        clock.now += 1
    clock.now += 3
    assert stopwatch.lap(images=80) == {"images_per_second": 20.0, "waiting": 0.25}
    clock.now += 1
    with stopwatch.stopped("evaluating"):
        clock.now += 50
    clock.now += 1
    assert stopwatch.lap(images=80) == {"images_per_second": 40.0, "waiting": 0.0}


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_missing_file_is_noticed_before_a_checkpoint(tmp_path, how):
    writer = MetricWriter(tmp_path, 0)
    writer.write(1, "train", {"loss": 1.0})
    writer.flush()
    (tmp_path / "metrics.jsonl").unlink()
    if how == "replaced":
        (tmp_path / "metrics.jsonl").touch()
    said = r"metrics.jsonl \((No such|it was replaced)"
    for finish in (writer.flush, writer.close):
        with pytest.raises(UserError, match=said):
            finish()
