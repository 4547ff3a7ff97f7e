"""Tests of sweeps: values of keys on the command line, and their combinations."""

import functools

import pytest

from vit_jax.errors import UserError
from vit_jax.plan import sweep, topology
from vit_jax.train.setup import set_up


@pytest.fixture
def argv(tmp_path, tiny_recipe):
    length = {"total_steps": None, "total_epochs": 2.0}
    recipe = tiny_recipe(tmp_path, **length, **{"model.depth": 1})
    return ["plan", f"--config={recipe}"]


def test_axes_are_read_from_one_text_or_several():
    expected = {"batch_size": ["64", "128"], "patch_size": ["14"]}
    assert sweep.parse(["batch_size=64,128;patch_size=14"]) == expected
    assert sweep.parse(["batch_size=64,128", " patch_size=14; "]) == expected
    assert sweep.parse([]) == {}


@pytest.mark.parametrize(
    "text", ["batch_size", "batch_size=", "=1", "batch_size=1,,2", "a=1;a=2"]
)
def test_malformed_axes_are_explained(text):
    with pytest.raises(UserError, match="expected every key once, with its values"):
        sweep.parse([text])


def test_every_combination_is_a_config(argv):
    axes = {"patch_size": ["4", "8"], "image_size": ["16", "8x16"]}
    found = sweep.configs(argv, axes)
    assert [
        (point, config.model.variant, config.image_size) for point, config in found
    ] == [
        ({"patch_size": "4", "image_size": "16"}, "Ti/4", (16,)),
        ({"patch_size": "4", "image_size": "8x16"}, "Ti/4", (8, 16)),
        ({"patch_size": "8", "image_size": "16"}, "Ti/8", (16,)),
        ({"patch_size": "8", "image_size": "8x16"}, "Ti/8", (8, 16)),
    ]
    assert sweep.configs(argv, {}) == []


def test_sweep_values_override_the_command_line(argv):
    argv = [*argv, "--config.batch_size=8", "--config.model.variant=S/8"]
    ((_, config),) = sweep.configs(argv, {"batch_size": ["32"], "patch_size": ["4"]})
    assert (config.batch_size, config.model.variant) == (32, "S/4")


@pytest.mark.parametrize(
    ("arguments", "axes", "message"),
    [
        (
            [],
            {"batch_sice": ["1"]},
            "batch_sice: no such key; did you mean 'batch_size'",
        ),
        ([], {"batch_size": ["many"]}, "batch_size=many: expected a whole number"),
        (["--config.model.variant="], {"patch_size": ["8"]}, "name of a variant"),
    ],
)
def test_wrong_keys_and_values_are_refused(argv, arguments, axes, message):
    with pytest.raises(UserError, match=message):
        sweep.configs([*argv, *arguments], axes)


def test_rows_have_numbers_or_a_reason(argv):
    axes = {"batch_size": ["16", "12"], "patch_size": ["4"]}
    here = topology()
    prepare = functools.partial(set_up, devices=here.devices)
    good, bad = sweep.run(sweep.configs(argv, axes), prepare, here)
    assert good["set"] == {"batch_size": "16", "patch_size": "4"}
    assert good["tokens"] == 5 and good["fits"] and not good["extrapolated"]
    core = 2 * 2 * 5 * 5 * 16
    assert good["attention_share"] * good["train_flops_per_image"] == 3 * core
    assert 10_000 < good["peak"] < 10_000_000
    assert good["hyb_seconds"] is good["hyb_seconds_per_image"] is None
    assert bad["set"]["batch_size"] == "12" and not bad["fits"]
    assert "batch_size=12 must be divisible by 8 devices" in bad["problem"]
