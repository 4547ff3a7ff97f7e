"""Tests of the reported speed of the input."""

import json

import pytest

from vit_jax.benchmark import __main__ as benchmark


@pytest.fixture
def run(tmp_path, tiny_recipe, monkeypatch, capsys):
    recipe = tiny_recipe(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["benchmark", f"--config={recipe}", *arguments])
        benchmark._main()
        return capsys.readouterr().out

    return run


def test_json_has_every_number(run):
    report = json.loads(run("--what=input", "--seconds", "0.3", "--json"))
    rate = report["images_per_second"]
    assert 16 / 0.3 < rate < 1e6
    assert report["images_per_second_per_core"] == rate / report["cores"]
    assert list(report["stages"]) == ["read", "decode", "augment", "batch", "copy"]
    shares = [stage["share"] for stage in report["stages"].values()]
    assert sum(shares) == pytest.approx(1)
    assert all(
        stage["images_per_second_per_core"] > 100 for stage in report["stages"].values()
    )
    assert 0 < report["first_batch_seconds"] < 60
    assert 0 <= report["waiting"] <= 1
    assert report["peak_bytes"] > 50e6


def test_prints_a_table(run):
    text = run("--seconds=0.1", "--config.loader_threads=1")
    assert "images/s/core" in text
    assert "whole pipeline: " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what=sleep"], "--what=sleep: expected one of train, inference, input"),
        (["--seconds=0"], "seconds"),
        (["--config.batch=1"], "batch: no such key"),
        (["--waht=input"], "waht"),
    ],
)
def test_wrong_arguments_are_explained(run, arguments, message):
    with pytest.raises(benchmark.UserError, match=message):
        run(*arguments)
