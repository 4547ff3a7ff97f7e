"""Numbers, sizes and names, as messages write and options read them."""

import numpy as np
import pytest

from vit_jax.words import (
    byte_size,
    did_you_mean,
    either,
    first_and_last,
    milliseconds,
    nearest,
    pair,
    shortened,
    si,
    times,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 MiB"),
        (3 * 2**19, "1.5 MiB"),
        (2**29 - 2**20, "511.0 MiB"),
        (2**29, "0.50 GiB"),
        (74_773_162_936, "69.64 GiB"),
        (3 * 2**40, "3,072.00 GiB"),
    ],
)
def test_bytes_are_written_in_mib_or_gib(count, text):
    assert byte_size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 M"), (25e6, "25.0 M"), (17.58e9, "17.6 G"), (2.5e15, "2,500.0 T")],
)
def test_large_numbers_get_a_prefix(count, text):
    assert si(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0, "0.000"), (0.0025, "2.500"), (0.01, "10.0"), (2, "2,000.0")],
)
def test_short_times_have_more_decimals(seconds, text):
    assert milliseconds(seconds) == text


def test_sides_are_joined():
    assert times((16, 8)) == "16×8"
    assert times([224, 224, 3]) == "224×224×3"


@pytest.mark.parametrize(
    "size", [16, (16,), [16, 16], np.int64(16), (np.uint8(16), 16)]
)
def test_one_side_stands_for_both(size):
    found = pair(size)
    assert found == (16, 16)
    assert {type(side) for side in found} == {int}


def test_two_sides_are_height_and_width():
    assert pair((16, 8)) == (16, 8)


@pytest.mark.parametrize("size", [(), (1, 2, 3), 16.0, "16", (16, 8.5), None])
def test_anything_else_is_not_a_size(size):
    with pytest.raises((TypeError, ValueError)):
        pair(size)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2, … and 1 more")],
)
def test_a_long_list_is_cut_and_the_rest_counted(count, text):
    assert shortened(range(count), most=3) == text


def test_a_list_is_formatted_by_the_given_function():
    names = [f"n{k}" for k in range(2_010)]
    assert shortened(names, repr).startswith("'n0', 'n1', ")
    assert shortened(names).endswith("n8, n9, … and 2,000 more")
    assert shortened(names[:11], separator="\n  ").endswith("\n  n9\n  … and 1 more")


def test_alternatives_are_quoted():
    assert either(["a"]) == "'a'"
    assert either(["a", "b"]) == "'a' or 'b'"
    assert either(["a", "b", "c"]) == "'a', 'b' or 'c'"


def test_nearest_names_come_first():
    choices = ["seed", "schedule", "learning_rate", "loss"]
    assert nearest("sed", choices) == nearest("SED", choices) == ["seed"]
    assert nearest("sed", choices, cutoff=0.5) == ["seed", "schedule"]
    assert nearest("sed", choices, count=1, cutoff=0.5) == ["seed"]
    assert nearest("mixer_b", ["B", "Mixer-B"]) == ["Mixer-B"]
    assert nearest("xyz", choices) == []
    # Among equals their own order decides.
    assert nearest("q", choices, cutoff=0) == choices[:3]


def test_suggestions_are_phrased_as_a_question():
    assert did_you_mean("adam", ["adamw", "sgd"]) == "; did you mean 'adamw'?"
    assert did_you_mean("cubic", ["bicubic", "cubist"], count=2) == (
        "; did you mean 'bicubic' or 'cubist'?"
    )
    assert did_you_mean(8, ["adamw", "sgd"]) == ""


def test_the_first_and_last_of_many_names():
    assert first_and_last("abcde", most=2) == "a, b, c, d, e"
    assert first_and_last("abcdef", most=2) == "a, b, …, e, f"
    assert first_and_last(["a b", "c"]) == "'a b', c"
    assert first_and_last(()) == ""
