"""Fixtures: folders of images, damaged files, and commands called as by a user."""

import json
import sys

import numpy as np
import PIL.Image
import pytest

from vit_jax.train.reporting import metrics


@pytest.fixture
def make_images():
    """Writes `{"train/cat": 3, ...}` noise images below a folder, and returns it."""

    def make(folder, counts, size=(9, 8)):
        rng = np.random.default_rng(0)
        for name, count in counts.items():
            (folder / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (*size, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(folder / name / f"{number}.png")
        return folder

    return make


@pytest.fixture
def call(monkeypatch):
    """Returns a function that calls a command's `main` and returns its exit value."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            return main()
        except SystemExit as end:
            return end.code

    return call


@pytest.fixture
def stopping_before(monkeypatch):
    """Returns a context in which a run ends, as if killed, before a metrics line."""

    class Killed(BaseException):
        pass

    def stopping(step, split, action):
        write = metrics.MetricWriter.write

        def killed(self, at, of, values):
            if (at, of) == (step, split):
                raise Killed
            write(self, at, of, values)

        with monkeypatch.context() as patch:
            patch.setattr(metrics.MetricWriter, "write", killed)
            with pytest.raises(Killed):
                action()

    return stopping


@pytest.fixture
def read_metrics():
    """Returns a function that reads the lines of WORKDIR/metrics.jsonl."""
    return lambda workdir: [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
