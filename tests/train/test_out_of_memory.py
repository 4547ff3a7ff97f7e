import re

import jax
import pytest

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.train import out_of_memory
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.memory import Bytes
from vit_jax.train.out_of_memory import alternatives, out_of_memory_explained
from vit_jax.train.setup import set_up


@pytest.fixture
def tiny_config(tiny_config):
    """Returns a function that makes configs with one block, which is enough here."""
    return lambda **values: tiny_config(**{"model.depth": 1} | values)


def flags_of(lines):
    return [line.partition(" (")[0].strip() for line in lines]


ERROR = "RESOURCE_EXHAUSTED: Out of memory allocating 74773162936 bytes."


def test_smaller_alternatives_are_listed_with_their_sizes(tiny_config):
    values = {"model.width": 128, "model.mlp_dim": 256, "image_size": (32,)}
    values |= {"augment.train": "resize", "mesh.data": 2}
    setup = set_up(tiny_config(batch_size=64, **values))
    with pytest.raises(UserError) as error, out_of_memory_explained(setup):
        raise jax.errors.JaxRuntimeError(ERROR)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("out of memory on cpu, asked for 69.64 GiB. The step needs")
    assert flags_of(lines) == [
        "--config.accum_steps=2",
        "--config.model.remat=full",
        "--config.mesh.data=1 --config.mesh.fsdp=2",
    ]
    assert all(re.search(r"\): \d+\.\d MiB$", line) for line in lines)


def test_alternatives_are_tried_until_enough_fit(tiny_config, monkeypatch):
    """On one device whose memory holds half as much, with recomputation already on."""
    setup = set_up(
        tiny_config(batch_size=64, **{"mesh.data": 1, "model.remat": "full"})
    )
    sizes = [
        Bytes.of(run.lower().compile().memory_analysis()).peak
        for run in (setup, *(changed for _, _, changed in alternatives(setup)))
    ]
    assert len(sizes) == 5
    monkeypatch.setattr(out_of_memory, "_limit", lambda _: sorted(sizes)[1])
    with pytest.raises(UserError) as error, out_of_memory_explained(setup):
        raise jax.errors.JaxRuntimeError(ERROR)
    first, *lines = str(error.value).splitlines()
    assert " MiB per device, which is too much. Each of these changes" in first
    assert flags_of(lines) == [
        "--config.accum_steps=2",
        "--config.batch_size=32",
        "--config.momentum_dtype=bfloat16",
        "--config.optimizer=adafactor --config.momentum_dtype=bfloat16",
    ]
    told = ["too much as well" in line for line in lines]
    assert told == [size > sorted(sizes)[1] for size in sizes[1:]]


def test_a_too_large_evaluation_is_detected_before_the_first_step(
    tiny_config, tmp_path, monkeypatch
):
    compile_ = jax.stages.Lowered.compile

    def refuse(self, *arguments, **options):
        if "x8x8x3xui8" in self.as_text() and "tensor<360x" in self.as_text():
            raise jax.errors.JaxRuntimeError(ERROR)
        return compile_(self, *arguments, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    config = tiny_config(**{"mesh.data": 8})
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, str(tmp_path / "run"))
    first, *lines = str(error.value).splitlines()
    assert "The evaluation needs too much memory per device. Each of" in first
    assert flags_of(lines) == [
        "--config.eval_batch_size=184",
        "--config.eval_batch_size=96",
        "--config.eval_batch_size=48",
    ]
    assert all(re.search(r"\(the same result\): \d\.\d MiB$", line) for line in lines)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_an_evaluation_shares_memory_with_the_optimizer_state(tiny_config):
    beside = out_of_memory.EVALUATION.beside
    plain, offloaded = (
        set_up(tiny_config(offload_optimizer=offload, **{"mesh.data": 1}))
        for offload in (False, True)
    )
    params = sharding.bytes_per_device(plain.abstract_state().params)
    assert 2 * params < beside(plain) < 2.01 * params  # AdamW's moments, and counts
    assert beside(offloaded) < 100


def test_sizes_match_runs_with_the_suggested_flags(tiny_config):
    """Programs are lowered, not compiled: their texts are the same."""
    setup = set_up(tiny_config(batch_size=64, **{"mesh.data": 2}))
    meant = [
        {"accum_steps": 2},
        {"model.remat": "full"},
        {"mesh.data": 1, "mesh.fsdp": 2},
        {"batch_size": 32},
        {"momentum_dtype": "bfloat16"},
        {"optimizer": "adafactor", "momentum_dtype": "bfloat16"},
    ]
    texts = []
    for values, (_, _, changed) in zip(meant, alternatives(setup), strict=True):
        config = tiny_config(**{"batch_size": 64, "mesh.data": 2} | values)
        expected = set_up(config).lower().as_text()
        assert changed.lower().as_text() == expected, values
        texts.append(expected)
    assert len({*texts, setup.lower().as_text()}) == 7


def test_accumulation_needs_less(tiny_config):
    values = {"model.width": 128, "model.mlp_dim": 512, "model.depth": 1}
    values |= {"augment.train": "resize", "image_size": (32,)}
    setup = set_up(tiny_config(batch_size=256, **values))
    _, _, changed = next(alternatives(setup))
    before, after = (
        Bytes.of(run.lower().compile().memory_analysis()).peak
        for run in (setup, changed)
    )
    assert after < before


@pytest.fixture
def sizes(monkeypatch):
    """Replaces the compiler: bytes by the keys of the runs that need them."""
    found = {}

    def needed(_, setup):
        keys = "accum_steps", "batch_size", "momentum_dtype", "optimizer"
        return found[tuple(setup.config[key] for key in keys), setup.config.model.remat]

    monkeypatch.setattr(out_of_memory, "_needed", needed)
    return found


def test_the_message_in_full(tiny_config, sizes, monkeypatch):
    setup = set_up(tiny_config(batch_size=14, accum_steps=2, **{"mesh.data": 1}))
    sizes[(2, 14, "float32", "adamw"), "none"] = 7 << 30
    sizes[(2, 14, "float32", "adamw"), "full"] = 4 << 30
    # Neither four microbatches nor a batch of 7 is possible.
    sizes[(2, 14, "bfloat16", "adamw"), "none"] = 1 << 20
    sizes[(2, 14, "bfloat16", "adafactor"), "none"] = "too much memory"
    monkeypatch.setattr(out_of_memory, "_limit", lambda _: 3 << 30)
    with pytest.raises(UserError) as error, out_of_memory_explained(setup):
        raise jax.errors.JaxRuntimeError(ERROR)
    assert str(error.value).splitlines() == [
        "out of memory on cpu, asked for 69.64 GiB; each device has 3.00 GiB. The step "
        "needs 7.00 GiB per device, which is too much. Each of these changes would "
        "need less:",
        "  --config.model.remat=full (a third more time): 4.00 GiB, too much as well",
        "  --config.momentum_dtype=bfloat16 (another result): 1.0 MiB",
        "  --config.optimizer=adafactor --config.momentum_dtype=bfloat16 "
        "(another result): too much memory",
    ]


def test_the_message_says_if_no_change_helps(tiny_config, sizes):
    values = {"mesh.data": 1, "model.remat": "full", "momentum_dtype": "bfloat16"}
    setup = set_up(tiny_config(batch_size=1, optimizer="sgd", **values))
    sizes[(1, 1, "bfloat16", "sgd"), "full"] = 3 << 30
    with pytest.raises(UserError) as error, out_of_memory_explained(setup):
        raise jax.errors.JaxRuntimeError(ERROR)
    assert str(error.value).endswith(
        "needs 3.00 GiB per device. Use more devices, a smaller model or smaller images"
    )


def test_other_errors_are_left_alone(tiny_config):
    setup = set_up(tiny_config())
    with pytest.raises(jax.errors.JaxRuntimeError), out_of_memory_explained(setup):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_alternatives_that_do_not_compile_are_reported(tiny_config, monkeypatch):
    setup = set_up(tiny_config(**{"mesh.data": 1}))

    def refuse(self, *_, **__):
        raise jax.errors.JaxRuntimeError(ERROR)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    said = pytest.raises(UserError, match="The step needs too much memory per device")
    with said as error, out_of_memory_explained(setup):
        setup.lower().compile()
    assert str(error.value).count("too much memory") == 1 + 5
