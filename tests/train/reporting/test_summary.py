"""The summary that a run logs at its start."""

import logging
import re
import types

import jax
import pytest

from vit_jax import host_memory
from vit_jax.train.reporting.summary import log_summary
from vit_jax.train.setup import set_up


@pytest.mark.parametrize("kept", [False, True])
def test_every_fact_is_there(kept, tiny_config, caplog, monkeypatch):
    monkeypatch.setattr(host_memory, "_kept", kept)
    setup = set_up(tiny_config(batch_size=32, accum_steps=2, total_steps=90))
    memory = types.SimpleNamespace(
        argument_size_in_bytes=3 << 20,
        output_size_in_bytes=2 << 20,
        temp_size_in_bytes=1 << 20,
        alias_size_in_bytes=2 << 20,
    )
    with caplog.at_level(logging.INFO, "vit_jax"):
        log_summary(setup, "runs/x", 30, memory, 5 << 20)
    rows = dict(re.split(" +", line, maxsplit=1) for line in caplog.messages)

    params = sum(x.size for x in jax.tree.leaves(setup.abstract_state().params))
    assert re.fullmatch(r"cpu, 8 × .*, process 1 of 1", rows["backend"])
    assert re.fullmatch(
        "data 8 × fsdp 1 × tensor 1: parameters 0.0 MiB per device, "
        "optimiser state 0.0 MiB",
        rows["mesh"],
    )
    assert f"jax {jax.__version__}, flax" in rows["versions"]
    assert f"Ti/4: width 16, depth 2, 2 heads, {params:,} parameters" in rows["model"]
    assert rows["model"].endswith("computes in float32")
    assert rows["images"] == "8×8 pixels in patches of 4×4: 2×2 + 1 tokens"
    assert rows["data"] == "digits: train 1,437, test 360; 10 classes"
    assert rows["classes"] == "0, 1, 2, 3, …, 6, 7, 8, 9"
    assert rows["batch"] == "32 = 4 per device = 2 × 2"
    assert rows["length"] == ("from step 30 to 90 steps of 44.9 per epoch = 2.0 epochs")
    assert rows["input"] == "2 threads, at most 5.0 MiB of images ready for later steps"
    needed, _, more = rows["memory"].partition("; ")
    assert needed == "4.0 MiB per device for the compiled step"
    assert more.startswith("freed memory is kept (" if kept else "")
    assert bool(more) == kept
    assert rows["directory"] == "runs/x"


def test_memory_per_device_is_reported_in_bytes(tiny_config, caplog):
    values = {"mesh.data": 2, "mesh.fsdp": 4, "model.width": 256, "batch_size": 32}
    setup = set_up(tiny_config(**values, **{"model.mlp_dim": 1024}))
    with caplog.at_level(logging.INFO, "vit_jax"):
        log_summary(setup, "runs/x", 0, None, 0)
    [row] = [line for line in caplog.messages if line.startswith("mesh")]
    # 12 · 256² parameters in each of two blocks are spread over fsdp, each with two
    # moments.
    assert 2 * 12 * 256**2 / 4 * 4 / 2**20 == 1.5
    assert row.endswith(
        "data 2 × fsdp 4 × tensor 1: parameters 1.5 MiB per device, optimiser state "
        "3.0 MiB"
    )


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({}, None),
        ({"train_only": "head"}, r"170 of ([\d,]+) parameters \((\d\.\d\d) %\)"),
        (
            {"head_only_steps": 2},
            r"([\d,]+) of \1 parameters \((100) %\)"
            "; in the first 2 steps only the head",
        ),
    ],
)
def test_trained_parameters_are_counted(values, row, tiny_config, caplog):
    setup = set_up(tiny_config(**values))
    with caplog.at_level(logging.INFO, "vit_jax"):
        log_summary(setup, "runs/x", 0, None, 0)
    lines = [line for line in caplog.messages if line.startswith("trained")]
    if row is None:
        assert not lines
        return
    match = re.fullmatch(f"trained +{row}", *lines)
    params = sum(x.size for x in jax.tree.leaves(setup.abstract_state().params))
    assert int(match[1].replace(",", "")) == params
    assert float(match[2]) in (100.0, pytest.approx(17_000 / params, abs=0.005))
