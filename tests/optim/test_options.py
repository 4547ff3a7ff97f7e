"""Options of optimisers, and keys that those of a run do not read."""

import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError, problems_of
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.options import options_of, unread_keys
from vit_jax.optim.rule import READ_BY_SOME
from vit_jax.optim.rules import OPTIMIZERS
from vit_jax.train.setup import set_up

PARAMS = {"head": {"kernel": 0.0}}


def recipe(options=(), **values):
    config = default_config()
    config.total_steps = 1
    config.update(values)
    with config.unlocked():
        config.optimizer_options = dict(options)
    return config


def said(config):
    with pytest.raises(UserError) as error:
        make_optimizer(config, PARAMS)
    return problems_of(error.value)


def test_defaults_and_given_options():
    lion = OPTIMIZERS["lion"]
    assert options_of(recipe(), lion) == {"b1": 0.9, "b2": 0.99}
    found = options_of(recipe({"b1": 0}), lion)
    assert found == {"b1": 0.0, "b2": 0.99}
    assert isinstance(found["b1"], float)


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        ("adamw", {"b1": 0.8}, ": optimizer=adamw takes no options; it is a key of its "
         "own: --config.b1=0.8"),
        ("lion", {"B2": 0.9}, ": optimizer=lion takes b1 and b2; did you mean 'b2'?"),
        ("lion", {"b2": 1.5}, "=1.5: expected a number from 0.0 to 0.999999"),
        ("muon", {"steps": 2.5}, "=2.5: expected a whole number from 1 to 100"),
        ("muon", {"steps": True}, "=True: expected a whole number from 1 to 100"),
        ("muon", {"nesterov": 1}, "=1: expected true or false"),
        ("muon", {"scale": "consistent"}, "='consistent': expected one of "
         "consistent_rms, original; did you mean 'consistent_rms'?"),
        ("muon", {"adamw_lr": float("nan")}, "=nan: expected a number of at least 0.0"),
        ("schedule_free_adamw", {"r": "x"}, "='x': expected a number of at least 0.0"),
    ],
)  # fmt: skip
def test_wrong_options(optimizer, options, expected):
    config = recipe(options, optimizer=optimizer)
    assert said(config) == [f"optimizer_options.{next(iter(options))}{expected}"]


def test_options_of_the_optimisers_of_groups():
    config = recipe({"b1": 0.8, "b3": 1}, groups="head/.*: rule=lion")
    assert said(config) == [
        "optimizer_options.b3: optimizer=adamw and rule=lion take b1 and b2"
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"momentum": 0.5}, ["momentum=0.5 has no effect: optimizer=adamw reads b1, "
         "b2, eps and momentum_dtype; leave it at 0.9"]),
        ({"optimizer": "lion", "b2": 0.95}, ["b2=0.95 has no effect: optimizer=lion "
         "reads momentum_dtype, and optimizer_options.b2; leave it at 0.999"]),
        ({"optimizer": "schedule_free_adamw", "momentum_dtype": "bfloat16"},
         ["momentum_dtype=bfloat16 has no effect: optimizer=schedule_free_adamw reads "
          "b1, b2 and eps; leave it at float32"]),
        ({"momentum": 0.5, "groups": "head/.*: rule=sgd"}, []),
        ({"optimizer": "lars", "b1": 0.5, "eps": 1e-6, "groups": "a: rule=sgd"},
         [f"{key} has no effect: optimizer=lars and rule=sgd read momentum and "
          f"momentum_dtype; leave it at {usual}"
          for key, usual in (("b1=0.5", 0.9), ("eps=1e-06", 1e-8))]),
        # Rows that cannot be read are another problem; what they name is not known.
        ({"momentum": 0.5, "groups": "head/.*: rule=sdg"}, []),
    ],
)  # fmt: skip
def test_keys_that_nothing_reads(values, expected):
    assert unread_keys(recipe(**values), OPTIMIZERS) == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_reads_exactly_the_keys_in_its_row(name):
    """Records what is read while the optimiser is made."""
    rule, read = OPTIMIZERS[name], set()

    class Watched:
        def __init__(self, config):
            self.__dict__["config"] = config

        def __getattr__(self, key):
            read.add(key)
            return getattr(self.config, key)

        def __getitem__(self, key):
            return self.config[key]

    make_optimizer(Watched(recipe(optimizer=name)), PARAMS)
    # `momentum_dtype` is read for all, and given to each.
    assert read & {*READ_BY_SOME} - {"momentum_dtype"} == {*rule.reads} - {
        "momentum_dtype"
    }


def test_all_problems_at_once_and_only_when_a_run_begins(tiny_config):
    config = tiny_config(momentum=0.5, groups="nothing: lr=2")
    with config.unlocked():
        config.optimizer_options = {"b1": 0.5}
    with pytest.raises(UserError) as error:
        set_up(config)
    for part in ("'nothing' matches no", "momentum=0.5 has no effect"):
        assert part in str(error.value)
    config.groups = ""
    with pytest.raises(UserError) as error:
        set_up(config)
    for part in ("optimizer_options.b1: optimizer=adamw takes no", "momentum=0.5 has"):
        assert part in str(error.value)
    config.optimizer = "adam"  # whose options are not known
    with pytest.raises(UserError, match="1 problem") as error:
        set_up(config)
    config.optimizer, config.optimizer_options = "adamw", {}
    assert set_up(config, begun=True).config.momentum == 0.5
