"""What happens to the batches of a run."""

import contextlib

import pytest


@pytest.fixture
def change_batches(monkeypatch):
    """Passes each training batch of later runs, with its number, through a function."""
    from vit_jax.train import loop

    opened = loop.open_batches

    def change(function):
        @contextlib.contextmanager
        def changed(setup, source, start):
            with opened(setup, source, start) as batches:
                yield _Changed(batches, function, start)

        monkeypatch.setattr(loop, "open_batches", changed)

    return change


class _Changed:
    def __init__(self, batches, function, start):
        self._batches, self._function, self._number = batches, function, start
        self.waiting_bytes = batches.waiting_bytes

    def __next__(self):
        batch = self._function(self._number, next(self._batches))
        self._number += 1
        return batch
