"""Tests of what is refused beside an objective that does not read it."""

import pytest
from ml_collections import ConfigDict

from vit_jax.config import flat_keys, without_effect
from vit_jax.errors import UserError
from vit_jax.objectives.choosing import OBJECTIVES
from vit_jax.objectives.protocol import OPTIONAL_KEYS
from vit_jax.train.setup import set_up

# Objective: options that suit the tiny config.
WITHOUT_LABELS = {
    "masked_autoencoding": {},
    "masked_patches": {},
    "self_distillation": {"freeze_last_layer": 0},
}
LABELLED = {
    "loss": "sigmoid",
    "loss_options": ConfigDict({"pos_weight": 2.0}),
    "label_smoothing": 0.1,
    "mixing.mixup_alpha": 0.2,
    "mixing.cutmix_alpha": 0.3,
    "mixing.erasing_prob": 0.25,
    "mixing.binary_targets": True,
    "mixing.form": "timm",
}


@pytest.fixture
def refused(tiny_config):
    def find(objective, options=(), **values):
        config = tiny_config(**{"eval_every": 0, "augment.train": None, **values})
        config.objective = objective
        config.objective_options = ConfigDict(dict(options))
        with pytest.raises(UserError) as error:
            _ = set_up(config).objective
        return str(error.value).splitlines()[1:]

    return find


@pytest.mark.parametrize("objective", WITHOUT_LABELS)
def test_keys_of_labels_are_refused_where_no_labels_are_read(refused, objective):
    lines = refused(objective, WITHOUT_LABELS[objective], **LABELLED)
    for key, line in zip(OPTIONAL_KEYS, lines, strict=True):
        assert line.startswith(f"  - {key}")
        assert f"has no effect: the objective {objective} does not read it" in line
    assert "label_smoothing=0.1" in lines[2]
    assert lines[2].endswith("leave it at 0.0")


@pytest.mark.parametrize("objective", WITHOUT_LABELS)
def test_the_defaults_of_these_keys_are_accepted(refused, objective):
    (line,) = refused(objective, {"nowhere": 1})
    assert "nowhere" in line


def test_empty_options_are_the_default_locked_or_not(tiny_config):
    config = tiny_config()
    for options in (ConfigDict(), ConfigDict().lock()):
        config.loss_options = options
        assert not without_effect(config, ["loss_options"], "")
    config.loss_options = ConfigDict({"gamma": 2.0})
    assert without_effect(config, ["loss_options"], "nobody reads it") == [
        "loss_options.gamma has no effect: nobody reads it; leave it out"
    ]


def test_the_objectives_own_problems_are_named_beside(refused):
    lines = refused("masked_autoencoding", {"mask_ratio": 1.0}, label_smoothing=0.1)
    assert [line.split("=")[0] for line in lines] == [
        "  - label_smoothing",
        "  - objective_options.mask_ratio",
    ]


def test_objectives_read_keys_that_there_are(tiny_config):
    config = tiny_config()
    known = {*flat_keys(config), "loss_options"}
    assert set(OPTIONAL_KEYS) <= known
    for objective in OBJECTIVES.values():
        assert set(objective.reads) <= set(OPTIONAL_KEYS)
