"""Kernels that fail cost a warning, and not the run."""

import re

import jax.numpy as jnp
import pytest

from vit_jax.models import attention
from vit_jax.train.attention_check import with_checked_attention
from vit_jax.train.setup import set_up


@pytest.fixture
def on_tpu(tiny_config):
    """The setup of a run, as it would be on a TPU."""
    setup = set_up(tiny_config(**{"model.attention": "auto"}))
    return setup.__class__(
        **{**vars(setup), "model": setup.model.clone(attention="pallas")}
    )


def test_kernels_that_agree_are_used(on_tpu, caplog):
    assert with_checked_attention(on_tpu).model.attention == "pallas"
    assert not caplog.records


def failing(*_):
    raise RuntimeError("Mosaic failed to compile\nand a long story")


def wrong(query, key, value, layout):
    mixed, _ = attention._explicit(query, key, value)
    return 1.05 * mixed, None


def not_finite(query, key, value, layout):
    return jnp.full_like(query, jnp.nan), None


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (failing, r"fail \(RuntimeError: Mosaic failed to compile\)"),
        (wrong, "are 5.0% of the largest value off"),
        (not_finite, "are nan% of the largest value off"),
    ],
)
def test_kernels_that_fail_are_dropped(on_tpu, kernel, message, monkeypatch, caplog):
    monkeypatch.setitem(attention.IMPLEMENTATIONS, "pallas", kernel)
    assert with_checked_attention(on_tpu).model.attention == "xla"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("attention is XLA's, because the kernels ")
    assert re.search(message, record.getMessage())


def test_what_is_asked_for_is_not_checked(on_tpu, monkeypatch):
    monkeypatch.setitem(attention.IMPLEMENTATIONS, "pallas", failing)
    on_tpu.config.model.attention = "pallas"
    assert with_checked_attention(on_tpu) is on_tpu
