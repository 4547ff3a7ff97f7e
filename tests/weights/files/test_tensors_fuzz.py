import importlib.util
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).parents[3] / "benchmarks" / "fuzz_weights.py"
_spec = importlib.util.spec_from_file_location("fuzz_weights", SCRIPT)
fuzz_weights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz_weights)


@pytest.mark.parametrize("kind", fuzz_weights.KINDS)
def test_damaged_files_are_read_or_refused(kind):
    result = fuzz_weights.fuzz(kind, count=100, seed=0)

    assert result.failures == []
    assert result.read + result.refused == 100
    # Outside these bounds the damage is too coarse to reach deep code, or too slight.
    assert result.read > 2
    assert result.refused > 50
