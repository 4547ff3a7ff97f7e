"""Tests of `python -m vit_jax.plan`: its JSON object, tables and messages."""

import importlib.util
import json
import re

import jax
import pytest
from jax.experimental import topologies

from vit_jax import sharding
from vit_jax.config import SIZE_KEYS, default_config
from vit_jax.errors import UserError
from vit_jax.main import WrongOverrides
from vit_jax.plan import __main__ as command
from vit_jax.plan.compiled import Bytes, Measurement
from vit_jax.plan.cost_model.collectives import Collectives
from vit_jax.plan.cost_model.estimate import Estimate
from vit_jax.plan.topologies import _NO_TPU
from vit_jax.train.setup import set_up


@pytest.fixture
def run(tmp_path, tiny_recipe, monkeypatch, capsys):
    images = {"dataset": "cifar10", "image_size": (16,), "batch_size": 32}
    length = {"total_steps": None, "total_epochs": 3.0}
    other = {"augment.train": None, "model.depth": 1}
    recipe = tiny_recipe(tmp_path, **images, **length, **other)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["plan", f"--config={recipe}", *arguments])
        command._main()
        return capsys.readouterr().out

    return run


def test_json_is_one_line_with_every_number(run):
    text = run("--json", "--config.mesh.data=2", "--config.mesh.fsdp=4")
    assert text.count("\n") == 1
    found = json.loads(text)

    config = default_config()
    config.dataset, config.image_size, config.batch_size = "cifar10", (16,), 32
    config.total_epochs = 3.0
    config.model.variant = "Ti/4"
    config.model.width, config.model.mlp_dim = 16, 32
    config.model.depth, config.model.num_heads = 1, 2
    setup = set_up(config, mesh=sharding.make_mesh(2, 4, 1))
    state = setup.abstract_state()
    memory = setup.lower().compile().memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    parameters = sharding.bytes_per_device(state.params)
    batch = 4 * (16 * 16 * 3 + 3 * 4)
    assert found["bytes"] == {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer": sharding.bytes_per_device(state.opt_state) + 8,
        "batch": batch,
        "activations": peak - memory.argument_size_in_bytes,
        "peak": peak,
    }
    named = found["bytes"]
    assert named["peak"] == sum(
        named[name] for name in ("parameters", "optimizer", "batch", "activations")
    )
    assert found["tokens"] == 17
    assert found["params"] == sum(x.size for x in jax.tree.leaves(state.params))
    tokens, width = 17, 16
    core = 2 * 2 * tokens**2 * width
    others = 16 * 48 * width + tokens * (4 * width**2 + 2 * width * 32) + width * 10
    assert found["flops_per_image"] == core + 2 * others
    assert found["train_flops_per_image"] == 3 * found["flops_per_image"]
    assert found["attention_share"] == pytest.approx(core / found["flops_per_image"])
    assert found["topology"] == "cpu:8" and found["devices"] == 8
    assert found["fits"] is True and found["refused"] is None
    assert found["compile_seconds"] > 0
    assert found["hyb_seconds"] is found["cyc_seconds"] is None
    assert found["collectives"] is None
    steps = round(3 * 50_000 / 32)
    assert (found["total_steps"], found["images"]) == (steps, steps * 32)
    assert found["epochs"] == pytest.approx(3, rel=1e-3)


@pytest.fixture
def compiled(monkeypatch):
    """A fake compiler for a device of 5 GiB: 1 GiB and 64 MiB per image."""

    def measure(_, arguments, topology):
        images = arguments[1]["image"].shape[0]
        memory = Bytes(2**30, 0, images * 2**26, 0)
        fits = memory.peak <= topology.usable_bytes
        sent = {"all-reduce": Collectives(3, 2**30)}
        times = Estimate(0.1, 0.2, 3e9, sent, 0) if fits else None
        refused = "" if fits else "Ran out of memory"
        return Measurement(memory, fits, refused, 7.0, 1.0, times)

    monkeypatch.setattr("vit_jax.plan.plans.measure", measure)
    properties = {"has_estimates": True, "peak_flops": 1e9, "usable_bytes": 5 * 2**30}
    for name, value in properties.items():
        monkeypatch.setattr(f"vit_jax.plan.topologies.Topology.{name}", value)


def assert_shown(text, lines):
    for line in lines:
        assert re.search(line, text), line


def test_needs_neither_data_nor_weights(run, compiled):
    text = run("--config.pretrained=no_such_file.npz", "--config.dataset=imagenet2012")
    assert_shown(text, [r"3\.00 epochs \(imagenet2012 of 1,281,167\)"])


def test_prints_tables(run, compiled):
    text = run("--suggest", "--sweep=batch_size=16,12", "--sweep", "patch_size=4")
    assert_shown(
        text,
        (
            r"devices +cpu:8, mesh data 8 × fsdp 1 × tensor 1",
            r"images +16×16 in patches of 4×4: 17 tokens",
            r"batch +32, 4 per device",
            r"at peak +3.00 GiB of 5.00 GiB: fits \(compiled in 7 s\)",
            r"step +hyb 100.0 ms, cyc 200.0 ms \(.*: 1.\d+ ms\); 3.0 GB to and from",
            r"collectives +3 all-reduce of 1.00 GiB",
            r"run +4,688 steps = 150,016 images = 3.00 epochs \(cifar10 of 50,000",
            r"They rank programs on one chip and do not predict throughput",
            r"Largest batch of the unchanged recipe: 64, 5.00 GiB at peak",
            r"--config.model.remat=full +3.00 GiB +yes +\+0% +\+0%",
            r"16 +4 +17 +[\d.]+ M +[\d.]+% +2.00 GiB +yes +100.0 +200.0 +50.0",
            r"12 +4 +no",
            r"batch_size=12 patch_size=4: .*\n.*batch_size=12 must be divisible by 8",
        ),
    )
    # Models this shallow are not extrapolated.
    assert "≈" not in text
    text = run("--sweep=batch_size=32", "--config.model.depth=5")
    assert_shown(text, [r"32 .* ≈ 3.00 GiB", "≈ extrapolated linearly from"])


def test_reasons_of_impossible_changes_are_below_the_table(run, compiled):
    text = run("--suggest", "--config.batch_size=16")
    assert_shown(
        text,
        (
            r"--config.accum_steps=4 +no",
            r"--config.accum_steps=4: .*\n.*batch_size=16 must be divisible by 8 dev",
        ),
    )


def test_devices_are_those_of_the_topology(run, compiled, monkeypatch):
    class Slice:
        devices = jax.devices()[:4]

    monkeypatch.setattr(topologies, "get_topology_desc", lambda **_: Slice)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for variable, value in _NO_TPU.items():
        monkeypatch.setenv(variable, value)
    found = json.loads(run("--json", "--topology=v5e:2x2", "--config.mesh.fsdp=2"))
    assert (found["topology"], found["devices"]) == ("v5e:2x2", 4)
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert found["collectives"] == {"all-reduce": {"count": 3, "bytes": 2**30}}


def test_program_that_does_not_fit_is_reported(run, compiled):
    large = "--config.batch_size=128"
    assert_shown(
        run(large), ["9.00 GiB of 5.00 GiB: does not fit", "compiler: Ran out of"]
    )
    answer = json.loads(run("--json", large))
    assert (answer["fits"], answer["refused"]) == (False, "Ran out of memory")
    assert answer["bytes"]["peak"] == 9 * 2**30


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--topology=v9:2x2"], ["--topology=v9:2x2: no such devices"]),
        (
            ["--config.batch=1", "--config.batch_size=12", "--config.mesh.fsdp=3"],
            ["batch: no such key", "mesh.fsdp=3, but there are 8 cpu devices"],
        ),
        (["--config.batch_size=12"], ["batch_size=12 must be divisible by 8 devices"]),
        (["--config.model.variant="], ["model.variant and pretrained are both empty"]),
        (
            ["--config.model.variant=", "--config.pretrained=nowhere.npz"],
            ["nowhere.npz"],
        ),
        (["--sweep=batch_size"], ["expected every key once"]),
        (["--topologie=cpu"], ["topologie"]),
    ],
)
def test_errors_explain_wrong_arguments(run, arguments, messages):
    with pytest.raises(UserError) as caught:
        run(*arguments)
    assert not isinstance(caught.value, WrongOverrides)
    for message in messages:
        assert message in str(caught.value)


def test_architecture_of_pretrained_weights(run, compiled, make_workdir, tmp_path):
    workdir = make_workdir(tmp_path / "run", image_size=(16, 16))
    found = json.loads(
        run(
            "--json",
            "--config.model.variant=",
            f"--config.pretrained={workdir}",
            *(f"--config.model.{key}=0" for key in SIZE_KEYS),
        )
    )
    assert found["patch_size"] == [4, 4]
    assert found["tokens"] == 17
