"""Classes named by a row of a table, or by the user's own package.module:Name."""

import math

import pytest

from vit_jax.errors import UserError
from vit_jax.evaluators.protocol import Evaluator
from vit_jax.named import check_options, find_class
from vit_jax.objectives.choosing import OBJECTIVES
from vit_jax.objectives.protocol import Objective


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(
        "from vit_jax.objectives.protocol import Objective\n"
        "class Mine(Objective):\n"
        "    def __init__(self, given, rate=1.0, steps=2): pass\n"
        "other = 3\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_row_of_the_table_and_a_users_own_class_are_found(module):
    assert (
        find_class("classification", OBJECTIVES, Objective, "objective")
        is (OBJECTIVES["classification"])
    )
    found = find_class("of_mine:Mine", OBJECTIVES, Objective, "objective")
    assert found.__name__ == "Mine"
    check_options(found, {"rate": 2, "steps": 1}, 1, "objective_options")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classificaton", r"choose from classification.*mean 'classification'\?"),
        (
            "nothing_like_it",
            "choose from classification, .*, self_distillation, or name your own class",
        ),
        ("no_such_module:Mine", "cannot be imported .ModuleNotFoundError.*no_such_mod"),
        ("of_mine:Yours", "cannot be imported .AttributeError"),
        ("broken:Mine", "cannot be imported .ZeroDivisionError: division by zero"),
        ("of_mine:other", "is 3; expected a class that inherits from vit_jax.objectiv"),
        ("vit_jax.evaluators.protocol:Evaluator", "expected a class that inherits"),
    ],
)
def test_a_name_of_no_such_class_is_explained(module, name, message):
    assert not issubclass(Evaluator, Objective)
    with pytest.raises(UserError, match=f"^objective='{name}'.*{message}"):
        find_class(name, OBJECTIVES, Objective, "objective")


def test_options_that_a_class_does_not_accept_are_named(module):
    mine = find_class("of_mine:Mine", OBJECTIVES, Objective, "objective")
    with pytest.raises(UserError) as error:
        check_options(mine, {"rates": 1, "stop": 2}, 1, "objective_options")
    assert str(error.value) == (
        "objective_options: Mine does not take rates, stop; it takes rate, steps"
    )


class Choosy:
    """Takes options of every type that is checked, and one that is not."""

    def __init__(
        self,
        given,
        rate: float = 1.0,
        count: int = 1,
        flag: bool = True,
        name: str = "",
        limit: float | None = None,
        size: tuple | int = 0,
        anything=None,
    ):
        del given, rate, count, flag, name, limit, size, anything


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rate": 2, "count": 3, "flag": False, "name": "x", "limit": None}, ""),
        ({"limit": 1.5, "size": "a", "anything": "b"}, ""),
        ({"rate": "x"}, "given.rate='x': expected a number"),
        ({"rate": True}, "given.rate=True: expected a number"),
        ({"rate": math.nan}, "given.rate=nan: expected a number"),
        ({"count": 1.0}, "given.count=1.0: expected a whole number"),
        ({"count": True}, "given.count=True: expected a whole number"),
        ({"flag": 1}, "given.flag=1: expected true or false"),
        ({"name": 5}, "given.name=5: expected text"),
        ({"limit": "no"}, "given.limit='no': expected a number"),
        (
            {"rate": "x", "name": 5},
            "given.rate='x': expected a number\ngiven.name=5: expected text",
        ),
    ],
)
def test_options_of_a_wrong_type_are_listed(options, expected):
    if not expected:
        check_options(Choosy, options, 1, "given")
        assert Choosy(None, **options)
        return
    with pytest.raises(UserError) as raised:
        check_options(Choosy, options, 1, "given")
    assert str(raised.value) == expected
