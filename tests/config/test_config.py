"""Derived values of a config, and the one message that names all its problems."""

import inspect
import re
import shlex

import pytest
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.config import checks
from vit_jax.errors import UserError
from vit_jax.train.choices import CHOICES


def recipe(**values):
    config = config_lib.default_config()
    config.total_steps = 1000
    config.update_from_flattened_dict(values)
    return config


def problems(**values):
    return config_lib.problems(recipe(**values), CHOICES, num_devices=8)


def test_the_defaults_with_a_length_are_valid():
    assert problems() == []


def test_every_key_is_explained():
    """Checks for a comment above every key, or above a few that belong together."""
    lines = inspect.getsource(config_lib.default_config).splitlines()
    keys = []
    for number, line in enumerate(lines):
        match = re.match(r"    config\.([\w.]+) = (?!ConfigDict)", line)
        if match is None:
            continue
        keys.append(match[1])
        above = next(
            text
            for text in reversed(lines[:number])
            if not text.startswith("    config.") or "ConfigDict()" in text
        )
        assert above.strip().startswith("# "), f"{match[1]} has no comment"
    assert sorted(keys) == sorted(config_lib.flat_keys(config_lib.default_config()))


def test_epochs_become_steps():
    config = recipe(total_epochs=2.5)
    config.total_steps = None
    resolved = config_lib.resolve(config, num_examples=10_000)
    assert resolved.total_steps == round(2.5 * 10_000 / 512)
    assert resolved.total_epochs is None
    assert config.total_steps is None  # the recipe itself is unchanged
    assert config_lib.resolve(resolved, 7).to_dict() == resolved.to_dict()


@pytest.mark.parametrize("epochs", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_length_is_named_once(epochs):
    config = recipe(total_epochs=epochs)
    config.total_steps = None
    [problem] = config_lib.problems(
        config_lib.resolve(config, 100), CHOICES, num_devices=1
    )
    assert problem.startswith(f"total_epochs={epochs}: must be")


def test_steps_are_counted_in_32_bits():
    [problem] = problems(total_steps=2**31)
    assert problem.startswith("total_steps=2147483648: must be from 1 to 2147483647")


def test_a_short_run_has_a_step():
    config = recipe(total_epochs=0.001)
    config.total_steps = None
    assert config_lib.resolve(config, num_examples=100).total_steps == 1


@pytest.mark.parametrize(
    ("given", "steps", "epochs"),
    [
        ((), 1000, 3.0),
        (("total_steps",), 1000, None),
        (("total_epochs", "seed"), None, 3.0),
    ],
)
def test_a_length_given_as_override_clears_the_recipes_length(given, steps, epochs):
    config = config_lib.override_length(recipe(total_epochs=3.0), given)
    assert (config.total_steps, config.total_epochs) == (steps, epochs)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"loss": "sofmax"}, "loss='sofmax': choose from .*did you mean 'softmax'"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1: must be at least 0.0"),
        ({"model.dropout_rate": 1.5}, "dropout_rate=1.5: .*nearest is 0.99"),
        ({"total_epochs": 3.0}, "total_steps and total_epochs are both given"),
        ({"warmup_steps": 1000}, "warmup_steps=1000 must be less than total_steps"),
        ({"cooldown_steps": 1001}, r"warmup_steps \+ cooldown_steps = 1001"),
        ({"image_size": (1, 2, 3)}, r"image_size=\(1, 2, 3\): give one size"),
        ({"image_size": ("a",)}, "give one size or height,width"),
        ({"batch_size": 100}, "8 devices × accum_steps=1 = 8: use 96 or 104"),
        ({"batch_size": 4}, "= 8: use 8$"),
        ({"accum_steps": 3}, "= 24: use 504 or 528"),
        ({"mesh.data": 0}, "mesh.data=0: must be -1"),
        ({"mixing.erasing_mode": "pixels"}, "erasing_mode='pixels': .*'pixel'"),
        ({"mixing.mixup_alpha": -0.2}, "mixup_alpha=-0.2: must be from 0.0"),
        ({"mixing.erasing_count": 0}, "erasing_count=0: .*nearest is 1"),
        ({"mixing.cutmix_alpha": 1.0}, "'big_vision' has no CutMix; use mixing.form="),
        ({"mixing.prob": 0.5}, "'big_vision' mixes every step; use mixing.form=timm"),
        ({"mixing.binary_targets": True}, "binary_targets with loss=softmax"),
        ({"weight_decay_on": "("}, "is not a regular expression"),
        ({"weight_decay_end": 0.4}, "weight_decay_end=0.4, but weight_decay=0.0"),
        ({"eps": 0.0}, "eps=0.0: must be from 1e-30"),
        ({"normalization": "imagnet"}, "'imagnet': .*did you mean 'imagenet'"),
        ({"model.class_token": "yes"}, "class_token='yes': choose from auto, on, off"),
        (
            {"model.class_token_position": "on", "model.pooling": "gap"},
            "without a class token has no effect; set model.class_token=on",
        ),
        (
            {"model.class_token_position": "off", "model.pooling": "map"},
            "without a class token has no effect",
        ),
        ({"model.norm": "after_pool"}, "after_pool with model.pooling=cls has no eff"),
        (
            {"model.stochastic_depth_form": "constant"},
            "form=constant without model.stochastic_depth has no effect",
        ),
        ({"model.head_std": 2.0}, "head_std=2.0: must be from 0.0 to 1.0"),
        (
            {"model.head_std": 0.1, "pretrained": "x", "reset_head": False},
            "head_std=0.1 with reset_head=False has no effect",
        ),
        ({"warmup_learning_rate": 1e-6}, "without warmup_steps has no effect"),
        (
            {"warmup_learning_rate": 0.1, "warmup_steps": 5},
            "warmup_learning_rate=0.1 must not exceed learning_rate=0.001",
        ),
        ({"min_learning_rate": 0.1}, "min_learning_rate=0.1 must not exceed"),
        (
            {"min_learning_rate": 1e-6, "schedule": "linear"},
            "only the cosine ends there; use end_learning_rate",
        ),
        (
            {"min_learning_rate": 1e-6, "schedule": "rsqrt"},
            "schedule=rsqrt; only the cosine ends there$",
        ),
        ({"model.variant": ""}, "model.variant and pretrained are both empty"),
        (
            {"model.variant": "", "pretrained": "x", "model.width": 64},
            "model.width=64: with an empty model.variant",
        ),
    ],
)
def test_a_wrong_value_is_named(values, text):
    found = problems(**values)
    assert len(found) == 1
    assert re.search(text, found[0])


def test_a_missing_length_is_a_problem():
    config = recipe()
    config.total_steps = None
    assert config_lib.problems(config, CHOICES, num_devices=1) == [
        "total_steps and total_epochs are both empty; give one"
    ]


def test_all_problems_are_reported_at_once():
    found = problems(loss="x", optimizer="y", batch_size=9, learning_rate=-1.0)
    with pytest.raises(UserError, match=r"4 problem\(s\)") as error:
        checks.check(found)
    for name in ("loss", "optimizer", "batch_size", "learning_rate"):
        assert f"- {name}=" in str(error.value)


def test_choices_and_ranges_name_existing_keys():
    keys = set(config_lib.flat_keys(config_lib.default_config()))
    assert keys >= set(CHOICES) | set(checks.RANGES)
    sections = {"evaluators"}
    assert keys | sections >= set(config_lib.FREE_TO_CHANGE)


def test_plain_values_are_json():
    plain = config_lib.to_plain(recipe(image_size=(32, 48)))
    assert plain["image_size"] == [32, 48]
    assert not isinstance(plain["model"], ConfigDict)


def test_flags_can_be_copied_into_a_shell():
    values = {"pretrained": "my runs/a b", "total_steps": 5, "image_size": (8, 8)}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    assert shlex.split(config_lib.as_flags(values)) == flags
    assert config_lib.as_flags({"accum_steps": 4}) == "--config.accum_steps=4"
