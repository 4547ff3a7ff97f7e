import importlib.util
import pathlib
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "load_weights.py"
_spec = importlib.util.spec_from_file_location("load_weights_benchmark", SCRIPT)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

TIME = "FAILED: the time is 1.60 × that of numpy.load, at most 1.5 × is allowed"
MEMORY = "FAILED: the peak of memory is 1.70 × the parameters, at most 1.5 × is allowed"


@pytest.mark.parametrize(
    ("seconds", "peak", "failed"),
    [
        (3.0, 150, []),
        (3.2, 150, [TIME]),
        (3.0, 170, [MEMORY]),
        (3.2, 170, [TIME, MEMORY]),
    ],
)
def test_exceeded_bounds_fail_the_benchmark(seconds, peak, failed, monkeypatch, capsys):
    runs = iter([(99.0, 999), (seconds, peak), (0.1, 10), (seconds, peak)])

    def measure(path, how):
        took, used = next(runs) if how == "vit_jax" else (2.0, 1000)
        return {"seconds": took, "peak": used}

    monkeypatch.setattr(sys, "argv", ["load_weights.py", "--runs=3"])
    monkeypatch.setattr(benchmark, "_write", lambda variant, path: 100)
    monkeypatch.setattr(benchmark, "_measure", measure)
    assert benchmark.main() == bool(failed)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == f"  ratio    {seconds / 2:6.2f}"
    assert lines[4:] == failed
