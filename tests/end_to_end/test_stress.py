"""A short run of benchmarks/stress.py, and a check that it would notice faults."""

import importlib.util
import json
import pathlib
import shutil

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "stress.py"


@pytest.fixture(scope="module")
def stress():
    spec = importlib.util.spec_from_file_location("stress", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kills_leave_no_trace_and_traces_would_be_seen(stress, tmp_path):
    kills = stress.Stress(tmp_path, kills=2, processes=1, steps=25, seed=1)
    found = kills.run()
    assert found["kills"] == 2
    assert found["ends_compared"]
    assert not any(found[kind] for kind in stress.WRONG), found
    records = (tmp_path / "kills_1.jsonl").read_text().splitlines()
    assert stress.summary([*map(json.loads, records)]) == found

    def left(change):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(kills.reference, run)
        change(run)
        return stress.what_is_left(run, kills.reference, kills.expected)

    def without(*steps):
        def change(run):
            for step in steps:
                shutil.rmtree(run / f"checkpoints/{step}")

        return change

    def another_number(run):
        file = run / "metrics.jsonl"
        file.write_text(file.read_text().replace('"step": 20, "', '"step": 20, "x'))

    def another_checkpoint(run):
        without(25)(run)
        shutil.copytree(run / "checkpoints/10", run / "checkpoints/20", dirs_exist_ok=1)

    whole = {"step": 25, "newest": 25, "lost": 0}
    right = {"older_than_an_interval": False, "mismatch": False}
    assert left(lambda run: None) == whole | right
    assert left(another_number) == whole | right | {"mismatch": True}
    assert left(another_checkpoint)["mismatch"]
    # The save of step 20 had started, so that of step 10 was complete.
    lost = {"step": 25, "newest": 10, "lost": 15}
    assert left(without(25, 20)) == lost | right
    assert left(without(25, 20, 10)) == {
        **{"step": 25, "newest": 0, "lost": 25},
        **{"older_than_an_interval": True, "mismatch": False},
    }
    assert stress.went_on("resuming from the checkpoint of step 10\n", 10)
    assert not stress.went_on("resuming from the checkpoint of step 10\n", 20)
