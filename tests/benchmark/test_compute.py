"""Tests of the reported speed of training and inference."""

import contextlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vit_jax import sharding
from vit_jax.benchmark import __main__ as command
from vit_jax.benchmark import compute, peak
from vit_jax.errors import UserError


@pytest.fixture
def run(tmp_path, tiny_recipe, monkeypatch, capsys):
    # The data set does not exist.
    values = {"dataset": "cifar100", "eval_batch_size": 10, "model.depth": 1}
    recipe = tiny_recipe(tmp_path, **values)
    monkeypatch.setattr(peak, "_SIZE", {"cpu": 64})

    def run(*arguments):
        argv = ["benchmark", f"--config={recipe}", "--seconds=0.1", *arguments]
        monkeypatch.setattr("sys.argv", argv)
        command._main()
        return capsys.readouterr().out

    return run


def test_training_in_numbers(run):
    report = json.loads(run("--what=train", "--json"))
    assert report["batch_size"] == 16
    ms = report["step_ms"]
    assert 0 < ms["p10"] <= ms["median"] <= ms["p90"]
    assert report["images_per_second"] == pytest.approx(16e3 / ms["median"])
    assert report["steps"] >= 5
    assert report["compile_seconds"] > 0.01
    # Five tokens of width 16; each product needs two more for its gradients.
    block = 4 * 5 * 16**2 + 2 * 5**2 * 16 + 2 * 5 * 16 * 32
    forward = 2 * (block + 4 * 48 * 16 + 16 * 100)
    assert report["model_flops_per_image"] == 3 * forward
    rate = report["model_flops_per_image"] * report["images_per_second"]
    assert report["model_flops_per_second"] == pytest.approx(rate)
    assert report["matmul_flops_source"] == "measured"
    share = rate / report["matmul_flops_per_second"]
    assert report["matmul_share"] == pytest.approx(share)
    # Per device: parameters, their two moments, and the step's other memory.
    params = 2 * 16 * 16 * 4 * 4
    assert 3 * params < report["peak_bytes"] < 100 * params
    assert report["peak_bytes_source"] == "compiler"
    (row,) = report["sweep"]
    assert row.items() <= report.items()


def test_progress_is_on_standard_error(tmp_path, run, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(compute.Progress, "phase", _noting(shown))
    json.loads(run("--what=inference", "--batch_sizes=8,16", "--json"))
    assert shown == [
        f"batch size {size}: {doing}"
        for size in (8, 16)
        for doing in ("compiling", "timing")
    ]


def _noting(shown):
    @contextlib.contextmanager
    def phase(self, text):
        shown.append(text)
        yield

    return phase


def test_sweep_has_all_sizes_and_the_best_at_the_top(run):
    sizes = "--batch_sizes=24,8,17"
    report = json.loads(run("--what=inference", sizes, "--json"))
    # Rounded up to the devices, as evaluation does.
    assert [row["batch_size"] for row in report["sweep"]] == [8, 24, 24]
    best = max(report["sweep"], key=lambda row: row["images_per_second"])
    assert best.items() <= report.items()


def test_table_marks_sizes_that_do_not_fit(run, monkeypatch):
    measure = compute._measure

    def small_memory(config, *rest):
        if config.batch_size > 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory ...")
        return measure(config, *rest)

    monkeypatch.setattr(compute, "_measure", small_memory)
    text = run("--what=train", "--batch_sizes=8,16,32")
    rows = [line.split() for line in text.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["8", "16", "32"]
    assert rows[2][3:6] == ["out", "of", "memory"]
    assert "8 × cpu" in text
    with pytest.raises(UserError, match="batch_size 32, 64: out of memory; pass small"):
        run("--what=train", "--batch_sizes=32,64")


def test_real_lack_of_memory_is_recognised(run):
    with pytest.raises(UserError, match=r"eval_batch_size 1\d+: out of memory"):
        run("--what=inference", "--batch_sizes=100000000000")


def test_other_errors_are_not_hidden(run, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(compute, "_measure", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        run("--what=train")


class Device:
    """A device of a mesh of absent devices."""

    def __init__(self, platform, device_kind):
        self.platform, self.device_kind = platform, device_kind


@pytest.mark.parametrize(
    ("platform", "kind", "dtype", "expected"),
    [
        ("tpu", "TPU v5 lite", "float32", (4 * 197e12, "data sheet")),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", (4 * 989e12, "data sheet")),
        # The data sheet does not apply to float32.
        ("gpu", "NVIDIA H100 80GB HBM3", "float32", (4 * 16e9, "measured")),
        ("gpu", "NVIDIA Unheard-of", "bfloat16", (4 * 16e9, "measured")),
        # Simulated devices share the same cores.
        ("cpu", "cpu", "bfloat16", (16e9, "measured")),
    ],
)
def test_peak_is_from_the_data_sheet_or_measured(
    monkeypatch, platform, kind, dtype, expected
):
    def measure(self):
        if self.source == "measured":
            self._seconds += [1.0, 1.0, 5.0]

    monkeypatch.setattr(peak.Peak, "measure", measure)
    monkeypatch.setattr(peak.Peak, "_size", 2000)
    mesh = SimpleNamespace(size=4, devices=np.array([Device(platform, kind)] * 4))
    found = peak.Peak(mesh, dtype)
    assert (found.flops_per_second, found.source) == expected


def test_peak_is_measured_with_products(monkeypatch):
    monkeypatch.setattr(peak, "_SIZE", {"cpu": 256})
    found = peak.Peak(sharding.make_mesh(data=1), "float32")
    assert 1e8 < found.flops_per_second < 1e14


def test_state_is_made_on_its_devices(tiny_config):
    config = tiny_config(**{"mesh.data": 2, "mesh.fsdp": 4})
    mesh = compute._checked([config])
    state = compute.first_state(config, "train", mesh)
    setup = compute.set_up(config, mesh=mesh)
    found, wanted = (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)
        for tree in (state, setup.abstract_state())
    )
    assert found == wanted
    batch = compute.random_batch(setup.abstract_batch())
    assert batch["mask"].sum() == 16
    assert len(set(batch["image"].flatten().tolist())) > 200
    assert len(batch["image"].sharding.device_set) == 8


def test_compiling_is_timed_without_a_cache(tmp_path):
    def kept(constant):
        jax.jit(lambda x: x * constant).lower(1.0).compile()
        return len(list(tmp_path.iterdir()))

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    try:
        assert kept(2.0) > 0
        first = kept(3.0)
        with compute._nothing_kept():
            assert kept(4.0) == first
        assert kept(5.0) > first
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what=train", "--batch_sizes=8,x,0"], "'x', '0'; expected whole numbers"),
        (["--what=input", "--batch_sizes=8"], "only to --what=train and --what=infer"),
        (["--what=train", "--batch_sizes=8,9,10"], "(?s)size=9 must be.*size=10 must"),
        (["--what=train", "--config.model.variant="], "does not open pretrained"),
    ],
)
def test_wrong_arguments_are_explained(run, arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments)
