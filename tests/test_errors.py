"""Tests of errors that list several problems."""

import pickle

from vit_jax.errors import Problems, UserError, problems_of


def test_problems_are_lines_each_once():
    error = Problems("no a", "no b", "no a")
    assert str(error) == "no a\nno b"
    assert problems_of(error) == ["no a", "no b"]
    assert problems_of(UserError("first line\nsecond line")) == [
        "first line\nsecond line"
    ]


def test_problems_survive_the_way_to_another_process():
    error = pickle.loads(pickle.dumps(Problems("no a", "no b")))
    assert (str(error), problems_of(error)) == ("no a\nno b", ["no a", "no b"])


def test_reworded_problems_are_those_of_the_message():
    error = Problems("no a", "no b")
    error.args = (f"here: {error}",)
    assert problems_of(error) == [str(error)] == ["here: no a\nno b"]
