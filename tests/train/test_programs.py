"""Properties of the compiled steps other than correct arithmetic."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from vit_jax import sharding
from vit_jax.train.guardrails import Guardrails
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.recorder import Recorder
from vit_jax.train.setup import Setup, set_up

KINDS = {
    "class token": {"model.dropout_rate": 0.1, "model.stochastic_depth": 0.1},
    "scanned, recomputed": {"model.scan": True, "model.remat": "full"},
    "map head": {"model.pooling": "map", "model.pre_logits": -1},
    "hybrid": {
        "model.variant": "R+Ti/16",
        "image_size": (32,),
        "augment.train": "resize",
    },
    "mixer": {
        "model.variant": "Mixer-B/4",
        "model.num_heads": 0,
        "model.tokens_mlp_dim": 6,
    },
    "mixed, accumulated": {"mixing.mixup_alpha": 0.8, "accum_steps": 2},
    "fsdp and tensor": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
}


def equations(jaxpr, where=""):
    """Yields every equation with the primitives and names around it, from outside."""
    for equation in jaxpr.eqns:
        name = f"{where}/{equation.source_info.name_stack}"
        yield equation, name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                if isinstance(inner, Jaxpr):
                    yield from equations(inner, f"{name}/{equation.primitive.name}")


def traced(config):
    setup = set_up(config)
    arguments = setup.abstract_state(), setup.abstract_batch()
    return setup.train_step().trace(*arguments).jaxpr


def float32_products(jaxpr):
    """Lists the products of matrices that use float32, wholly or in part."""
    return [
        name
        for equation, name in equations(jaxpr.jaxpr)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
        and any(x.aval.dtype == jnp.float32 for x in equation.invars)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_head_multiplies_in_float32(tiny_config, kind):
    config = tiny_config(**KINDS[kind], compute_dtype="bfloat16")
    if kind != "mixer":
        config.model.attention = "explicit"
    found = float32_products(traced(config))
    # Forward, and the gradients of kernel and input; logits are few and float32.
    assert len(found) == 3
    assert all(name.endswith("/head") for name in found), found


def test_jaxs_own_attention_has_float32_gradients_of_scores(tiny_config):
    """This is the one exception; a run on a GPU tries whether ours is faster."""
    config = tiny_config(compute_dtype="bfloat16", **{"model.attention": "xla"})
    found = [n for n in float32_products(traced(config)) if not n.endswith("/head")]
    assert len(found) == 2 * 2  # of query and key, in two blocks
    assert all("transpose" in name and "/attention/" in name for name in found)


def test_kernels_multiply_in_bfloat16(tiny_config):
    values = {"model.width": 128, "model.num_heads": 2, "model.depth": 1}
    # All tokens of the last block are read.
    values |= {"model.pooling": "gap", "model.attention": "pallas"}
    config = tiny_config(**values, compute_dtype="bfloat16")
    jaxpr = traced(config)
    names = [n for e, n in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert sum("/pallas_call" in name for name in names) >= 2 + 5
    assert not any("/pallas_call" in name for name in float32_products(jaxpr))


@pytest.mark.parametrize("kind", ["class token", "mixer", "mixed, accumulated"])
def test_nothing_in_the_step_waits_for_the_host(tiny_config, kind):
    jaxpr = traced(tiny_config(**KINDS[kind]))
    found = {equation.primitive.name for equation, _ in equations(jaxpr.jaxpr)}
    assert "dot_general" in found
    assert not {name for name in found if re.search("callback|feed|debug", name)}
    assert not jaxpr.effects


def test_images_are_transferred_as_bytes(tiny_config):
    setup = set_up(tiny_config())
    text = setup.lower().as_text()
    [inputs] = re.findall(r"func\.func public @main\((.*?)\) ->", text, re.DOTALL)
    assert "tensor<16x8x8x3xui8>" in inputs
    assert not re.search(r"tensor<16x8x8x3x[^u]", inputs)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer": "sgd"},
        {"momentum_dtype": "bfloat16", "accum_steps": 2},
        KINDS["fsdp and tensor"],
    ],
)
def test_the_new_state_reuses_the_memory_of_the_old_one(tiny_config, values):
    setup = set_up(tiny_config(**values))
    state, batch = setup.abstract_state(), setup.abstract_batch()
    compiled = setup.lower().compile()
    memory = compiled.memory_analysis()
    size = sharding.bytes_per_device(state)
    assert memory.alias_size_in_bytes == size
    # The other inputs are the batch; the other outputs are metrics, and pointers.
    assert memory.argument_size_in_bytes == size + sharding.bytes_per_device(batch)
    outputs = len(jax.tree.leaves(state)) + 5
    assert memory.output_size_in_bytes == size + 5 * 4 + outputs * 8
    zeros = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), (state, batch)
    )
    compiled(*zeros)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(zeros[0]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(zeros[1]))


class Noted:
    """A program, lowered or compiled, that records when it runs."""

    def __init__(self, program, events):
        self.program, self.events, self.runs = program, events, 0

    def compile(self):
        return Noted(self.program.compile(), self.events)

    def memory_analysis(self):
        return self.program.memory_analysis()

    def __call__(self, state, batch):
        self.runs += 1
        self.events.append(f"run {self.runs}")
        return self.program(state, batch)


@pytest.fixture
def events(monkeypatch, caplog):
    """Records a run's events in order: run, read, evaluated, saved, compiled."""
    found = []

    def noting(owner, name, label):
        original = getattr(owner, name)

        def method(self, step, *arguments, **options):
            found.append(f"{label} {step}")
            return original(self, step, *arguments, **options)

        monkeypatch.setattr(owner, name, method)

    noting(Guardrails, "judge", "read")
    noting(Recorder, "evaluate", "evaluate")
    noting(Recorder, "save", "save")
    lower = Setup.lower
    monkeypatch.setattr(
        Setup, "lower", lambda setup, choice: Noted(lower(setup, choice), found)
    )

    class Compiling(logging.Handler):
        def emit(self, record):
            if match := re.match(r"Compiling (?:jit\()?(\w+)", record.getMessage()):
                found.append(f"compile {match[1]}")

    handler = Compiling()
    logging.getLogger("jax").addHandler(handler)
    with jax.log_compiles():
        yield found
    logging.getLogger("jax").removeHandler(handler)


def test_a_run_compiles_each_step_once_and_reads_metrics_one_step_late(
    tiny_config, tmp_path, events
):
    config = tiny_config(
        total_steps=6,
        eval_every=2,
        checkpoint_every=2,
        eval_split="test[:21]",  # the last batch of an evaluation is not full
        eval_batch_size=8,
    )
    train_and_evaluate(config, str(tmp_path / "run"))
    compiled = [event for event in events if event.startswith("compile")]
    assert compiled.count("compile train_step") == 1
    assert compiled.count("compile eval_step") == 1
    # Nothing is compiled once each part of the run has happened.
    begin = events.index("run 3")
    assert [e for e in events[begin:] if e.startswith("compile")] == []
    first = events[events.index("run 1") : events.index("evaluate 2")]
    assert [e for e in first if e.startswith("compile")] == []
    # The next step runs before the metrics of the last one are fetched.
    others = [event for event in events if not event.startswith("compile")]
    assert others == [
        event
        for k in (1, 3, 5)
        for event in (
            *(f"run {k}", f"run {k + 1}", f"read {k}"),
            *(f"read {k + 1}", f"evaluate {k + 1}", f"save {k + 1}"),
        )
    ]
