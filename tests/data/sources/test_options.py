"""Tests of the options of a data set: from a config, from flags, and wrong ones."""

import pytest

from vit_jax import config as config_lib
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.options import (
    DEFAULT_OPTIONS,
    FIRST_RULES,
    NEWEST_RULES,
    DataOptions,
)
from vit_jax.errors import UserError


def test_the_config_has_every_option_at_its_default():
    data = config_lib.default_config().data
    assert sorted(data) == sorted(DataOptions.names())
    assert DataOptions.from_config(data) == DEFAULT_OPTIONS == DataOptions()
    assert data.rules == 0
    assert DEFAULT_OPTIONS.rules == NEWEST_RULES


@pytest.mark.parametrize("data", [None, {}, {"hold_out": 0.1}])
def test_configs_without_rules_keep_the_first(data):
    assert DataOptions.from_config(data) == DataOptions(rules=FIRST_RULES)


def test_a_recorded_config_may_have_options_of_another_version():
    given = {"rules": 2, "splits": "none", "an_option_of_tomorrow": 1}
    assert DataOptions.from_config(given) == DataOptions(splits="none")


def test_flags_become_values():
    flags = ["splits=train=Training,val=Dev Set", "hold_out=0.25", "rules=1"]
    found = DEFAULT_OPTIONS.with_flags(flags)
    assert found == DataOptions("", "train=Training,val=Dev Set", 0.25, 1)
    assert found.named_splits == {"Training": "train", "Dev Set": "val"}
    assert DataOptions(splits="none").named_splits == {}
    assert DataOptions(splits="train=a, train=b=c").named_splits == {
        "a": "train",
        "b=c": "train",
    }


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("hold_out", "--data=hold_out: expected NAME=VALUE, as in"),
        ("hold_uot=1", "--data=hold_uot: no such option; .* mean 'hold_out'"),
        ("hold_out=x", "--data=hold_out='x': expected a number"),
        ("rules=x", "--data=rules='x': expected a whole number"),
        ("hold_out=1", "data.hold_out=1.0: expected a share of the training data"),
        ("hold_out=0", "data.hold_out=0.0: expected a share"),
        ("rules=9", "data.rules=9: this version knows 1 to"),
        ("splits=Training", "data.splits='Training': expected SPLIT=NAME"),
        ("splits=train=a,val=a", "with every name once"),
        ("splits=train=", "expected SPLIT=NAME"),
        ("splits=my train=a", "expected SPLIT=NAME"),
    ],
)
def test_wrong_flags_are_explained(flag, message):
    with pytest.raises(UserError, match=message):
        DEFAULT_OPTIONS.with_flags([flag])


def test_an_unknown_kind_is_explained():
    with pytest.raises(UserError, match=r"data\.kind='images': choose from digits, im"):
        open_dataset("photos", "", DataOptions(kind="images"))
